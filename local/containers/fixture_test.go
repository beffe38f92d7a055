package containers

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
)

// root is the repository.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	return dir
}

// passwords are those that .env.example has the reader make.
var passwords = map[string]string{
	"POSTGRES_PASSWORD": "p1", "KAPSEL_DB_PASSWORD": "p2", "TEMPORAL_DB_PASSWORD": "p3", "GRAFANA_PASSWORD": "p4",
}

// example is .env.example as compose reads it.
func example(t *testing.T) map[string]string {
	t.Helper()
	values, err := dotenv.Read(filepath.Join(root(t), ".env.example"))
	require.NoError(t, err)
	return values
}

// load reads docker-compose.yml as `docker compose config` does, with all profiles and the given variables.
func load(t *testing.T, variables ...map[string]string) (*types.Project, error) {
	t.Helper()
	var environ []string
	for _, set := range variables {
		for name, value := range set {
			environ = append(environ, name+"="+value)
		}
	}
	options, err := cli.NewProjectOptions([]string{filepath.Join(root(t), "docker-compose.yml")},
		cli.WithWorkingDirectory(root(t)), cli.WithEnv(environ), cli.WithProfiles([]string{"*"}), cli.WithResolvedPaths(true))
	require.NoError(t, err)
	return options.LoadProject(t.Context())
}

func project(t *testing.T) *types.Project {
	t.Helper()
	p, err := load(t, example(t), passwords)
	require.NoError(t, err)
	return p
}

// kapsels are the services that run Kapsel's image, by name.
func kapsels(p *types.Project) map[string]types.ServiceConfig {
	found := map[string]types.ServiceConfig{}
	for name, service := range p.Services {
		if service.Build != nil {
			found[name] = service
		}
	}
	return found
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kapsel-containers-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "kapsel")
	if output, err := exec.CommandContext(context.Background(), "go", "build", "-o", binary, "github.com/kapsel-io/kapsel/cmd/kapsel").CombinedOutput(); err != nil {
		return string(output), err
	}
	return binary, nil
})

// kapsel is a built binary.
func kapsel(t *testing.T) string {
	t.Helper()
	binary, err := build()
	require.NoError(t, err, binary)
	return binary
}

// run runs a command with nothing in its environment but what is given, and returns what it prints.
func run(t *testing.T, environ []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = environ
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	require.NoError(t, cmd.Run(), "%s %v: %s%s", name, args, problems.String(), out.String())
	return out.String()
}

var variable = regexp.MustCompile(`\$\{([A-Z_]+)`)
