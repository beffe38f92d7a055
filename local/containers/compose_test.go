package containers

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The production shape: two of each process, and what they need.
func TestComposeHasTheProductionShape(t *testing.T) {
	t.Parallel()
	p := project(t)
	for _, name := range []string{"api-1", "api-2", "worker-1", "worker-2", "proxy", "postgres", "migrate", "log-init",
		"temporal", "temporal-ui", "prometheus", "grafana", "monitor"} {
		require.Contains(t, p.Services, name)
	}
	require.Equal(t, p.Services["api-1"].Environment, p.Services["api-2"].Environment)
	require.Equal(t, p.Services["worker-1"].Environment, p.Services["worker-2"].Environment)
}

// A variable that Kapsel doesn't read is a mistake in the compose file: each command's help names those that it reads.
func TestEachVariableOfKapselIsOneThatItsCommandReads(t *testing.T) {
	t.Parallel()
	for name, service := range kapsels(project(t)) {
		if len(service.Entrypoint) > 0 || name == "admin" { // the verifier; any command
			continue
		}
		words := slices.DeleteFunc(slices.Clone([]string(service.Command)), func(word string) bool { return strings.HasPrefix(word, "-") })
		help := run(t, nil, kapsel(t), append(words[:min(len(words), 2)], "--help")...)
		for variable := range service.Environment {
			if variable == "LOG_LEVEL" && !strings.Contains(help, "  LOG_LEVEL\n") {
				continue // read by all, explained where it matters
			}
			require.Contains(t, help, "  "+variable+"\n", "%s sets %s", name, variable)
		}
	}
}

// Kapsel's containers can't write to their image, gain rights or be root, and everything has an image of one version.
func TestContainersAreRestricted(t *testing.T) {
	t.Parallel()
	p := project(t)
	for name, service := range p.Services {
		require.Contains(t, service.SecurityOpt, "no-new-privileges:true", name)
		require.False(t, service.Privileged, name)
		image, tag, _ := strings.Cut(service.Image[strings.LastIndex(service.Image, "/")+1:], ":")
		require.NotEmpty(t, tag, image)
		require.NotEqual(t, "latest", tag, image)
		for _, port := range service.Ports {
			require.Equal(t, "127.0.0.1", port.HostIP, "%s is reached from this machine only, unless .env says otherwise", name)
		}
	}
	for name, service := range kapsels(p) {
		require.True(t, service.ReadOnly, name)
		require.Equal(t, []string{"ALL"}, service.CapDrop, name)
	}
	require.True(t, p.Networks["data"].Internal)
	for _, name := range []string{"postgres", "temporal"} {
		require.Len(t, p.Services[name].Networks, 1, name)
		require.Contains(t, p.Services[name].Networks, "data", name)
	}
}

// Whoever is waited for can say that it is well, or ends.
func TestTheOrderOfStartsCanBeWaitedFor(t *testing.T) {
	t.Parallel()
	p := project(t)
	for name, service := range p.Services {
		for on, dependency := range service.DependsOn {
			switch dependency.Condition {
			case "service_healthy":
				require.NotNil(t, p.Services[on].HealthCheck, "%s waits for %s", name, on)
			case "service_completed_successfully":
				require.NotEqual(t, "unless-stopped", p.Services[on].Restart, "%s waits for %s to end", name, on)
			}
		}
	}
}

// Each file that is mounted is there. (Docker would make a directory in its place.)
func TestMountedFilesExist(t *testing.T) {
	t.Parallel()
	for name, service := range project(t).Services {
		for _, volume := range service.Volumes {
			if volume.Type == "bind" {
				require.FileExists(t, existing(t, volume.Source), "%s mounts %s", name, volume.Source)
				require.True(t, volume.ReadOnly, "%s: %s", name, volume.Source)
			}
		}
	}
}

// existing returns path, or of a directory any file in it.
func existing(t *testing.T, path string) string {
	t.Helper()
	found := path
	require.NoError(t, filepath.WalkDir(path, func(p string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found = p
		}
		return err
	}))
	return found
}

// .env.example holds, or has the reader make, each variable of the compose file, and no other.
func TestTheExampleHasEachVariable(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(filepath.Join(root(t), "docker-compose.yml"))
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root(t), ".env.example"))
	require.NoError(t, err)
	used := map[string]bool{}
	values := example(t)
	for _, match := range variable.FindAllSubmatch(file, -1) {
		name := string(match[1])
		used[name] = true
		_, made := passwords[name]
		if _, set := values[name]; !set {
			require.True(t, made, "%s isn't in .env.example", name)
			require.Contains(t, string(text), " "+name, "%s isn't made in .env.example", name)
		}
	}
	for name := range values {
		require.True(t, used[name], "%s of .env.example isn't used", name)
	}
	// Without a password nothing starts, and the message names it.
	for missing := range passwords {
		others := map[string]string{}
		for name, value := range passwords {
			if name != missing {
				others[name] = value
			}
		}
		_, err := load(t, values, others)
		require.ErrorContains(t, err, missing)
	}
}
