//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNoBinaries says that this machine has no Postgres server to run.
var ErrNoBinaries = errors.New("no Postgres server on this machine")

const installHint = "install one (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; " +
	"macOS: brew install postgresql), or put its bin directory on PATH"

// wellKnown are the directories in which packages put the binaries, by version.
var wellKnown = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // PostgreSQL's own RPMs
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on ARM
	"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/opt/local/lib/postgresql*/bin", // MacPorts
	"/usr/local/pgsql/bin",           // from source
}

// FindBinaries returns a directory with postgres and initdb: what `pg_config --bindir` says, the directories where
// packages put them (newest first), then PATH. PATH comes last and its links are followed, since what is found there may
// be a wrapper that can't find the files it comes with. The error is [ErrNoBinaries].
func FindBinaries(ctx context.Context) (string, error) { return binaries(ctx, "", "") }

// binaries is FindBinaries for a cluster of the given major version ("" for a new one), in dir if that isn't "".
func binaries(ctx context.Context, dir, major string) (string, error) {
	if dir != "" {
		return choose(ctx, []string{dir}, major)
	}
	return choose(ctx, candidates(ctx, wellKnown), major)
}

// choose returns the first directory that holds a server of the wanted version.
func choose(ctx context.Context, dirs []string, major string) (string, error) {
	var others []string
	for _, dir := range dirs {
		if !executable(filepath.Join(dir, "postgres")) || !executable(filepath.Join(dir, "initdb")) {
			continue
		}
		version, err := majorVersion(ctx, filepath.Join(dir, "postgres"))
		if err != nil {
			others = append(others, fmt.Sprintf("%s (%v)", dir, err))
			continue
		}
		if major == "" || version == major {
			return dir, nil
		}
		others = append(others, fmt.Sprintf("%s (%s)", dir, version))
	}
	switch {
	case len(others) == 0:
		return "", fmt.Errorf("%w: %s", ErrNoBinaries, installHint)
	case major == "":
		return "", fmt.Errorf("%w that runs: only %s; %s", ErrNoBinaries, strings.Join(others, ", "), installHint)
	}
	return "", fmt.Errorf("%w of version %s, which made this cluster: only %s; install postgresql-%s, or use another directory",
		ErrNoBinaries, major, strings.Join(others, ", "), major)
}

// candidates lists where binaries may be, best first.
func candidates(ctx context.Context, globs []string) []string {
	var dirs []string
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, glob := range globs {
		found, _ := filepath.Glob(glob) // the only error is a malformed pattern, and these are ours
		slices.SortFunc(found, func(a, b string) int { return pathVersion(b) - pathVersion(a) })
		dirs = append(dirs, found...)
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	return dirs
}

var (
	digits        = regexp.MustCompile(`\d+`)
	versionOutput = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)
)

// pathVersion is the number in the name of the directory that bin is in, 0 without one: 9 is older than 15, which sorting
// by text would turn round.
func pathVersion(bin string) int {
	n, _ := strconv.Atoi(digits.FindString(filepath.Base(filepath.Dir(bin))))
	return n
}

// majorVersion asks a server binary: "postgres (PostgreSQL) 15.8 (Debian 15.8-1)" is "15".
func majorVersion(ctx context.Context, postgres string) (string, error) {
	out, err := exec.CommandContext(ctx, postgres, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", postgres, err)
	}
	match := versionOutput.FindSubmatch(out)
	if match == nil {
		return "", fmt.Errorf("ask %s for its version: it says %q", postgres, out)
	}
	return string(match[1]), nil
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
