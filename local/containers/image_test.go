package containers

import (
	"bytes"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
)

var goBuild = regexp.MustCompile(`(?m)^\s+(?:(cd verify) && )?GOOS=\$TARGETOS GOARCH=\$TARGETARCH (go build .*?) -o /out/(\S+) (\S+)$`)

// What .dockerignore lets through is enough to build both binaries with the Dockerfile's own commands, and they need nothing
// of the image that they run in: no C library, no loader.
func TestTheImageHoldsTwoStaticBinaries(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds everything without cgo")
	}
	file, err := os.ReadFile(filepath.Join(root(t), "deploy", "Dockerfile"))
	require.NoError(t, err)
	require.Contains(t, string(file), "\nUSER 65532:65532\n")
	require.Contains(t, string(file), "\nENV GOWORK=off GOTOOLCHAIN=local CGO_ENABLED=0\n")
	source := buildContext(t)
	builds := goBuild.FindAllStringSubmatch(string(file), -1)
	require.Len(t, builds, 2)
	for _, b := range builds {
		dir, command, name, pkg := source, b[2], b[3], b[4]
		if b[1] != "" {
			dir = filepath.Join(source, "verify")
		}
		binary := filepath.Join(t.TempDir(), name)
		// By the shell, as Docker does.
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-eu", "-c", command+" -o "+binary+" "+pkg)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, string(output))
		requireStatic(t, binary)
		help, err := exec.CommandContext(t.Context(), binary, "--help").CombinedOutput()
		require.NoError(t, err)
		require.True(t, bytes.Contains(help, []byte(name)), name)
	}
}

func requireStatic(t *testing.T, binary string) {
	t.Helper()
	f, err := elf.Open(binary)
	if err != nil {
		t.Skipf("not a Linux binary: %v", err)
	}
	defer func() { _ = f.Close() }()
	for _, segment := range f.Progs {
		require.NotEqual(t, elf.PT_INTERP, segment.Type, "it wants a loader")
	}
}

// buildContext copies what docker would send to the engine.
func buildContext(t *testing.T) string {
	t.Helper()
	list, err := os.Open(filepath.Join(root(t), ".dockerignore"))
	require.NoError(t, err)
	defer func() { _ = list.Close() }()
	patterns, err := ignorefile.ReadAll(list)
	require.NoError(t, err)
	ignored, err := patternmatcher.New(patterns)
	require.NoError(t, err)
	to := t.TempDir()
	require.NoError(t, filepath.WalkDir(root(t), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root(t), path)
		if err != nil || name == "." {
			return err
		}
		skip, err := ignored.MatchesOrParentMatches(name)
		switch {
		case err != nil:
			return err
		case entry.IsDir() && skip && !strings.Contains(name, string(filepath.Separator)):
			return fs.SkipDir // nothing below is let through
		case skip || entry.IsDir() || !entry.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), content, 0o644)
	}))
	require.NoDirExists(t, filepath.Join(to, ".git"))
	require.NoDirExists(t, filepath.Join(to, ".kapsel"))
	return to
}
