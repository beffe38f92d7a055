//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// initialise makes the cluster. initdb works in a directory of its own, beside the place where the cluster will be; the
// rename at the end is what makes it exist, so a crash at any point leaves either a whole cluster or none. Leftovers are
// removed here: nothing but an interrupted initialise makes directories of that name.
func (p place) initialise(ctx context.Context, bin string, sync bool) error {
	if entries, err := os.ReadDir(p.data); err == nil && len(entries) > 0 {
		return errors.New("directory holds something that is no Postgres cluster; move it away, or use another directory")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	home := filepath.Dir(p.data)
	leftovers, _ := filepath.Glob(filepath.Join(home, "initdb-*")) // no error: the pattern is well-formed
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp(home, "initdb-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := p.initdb(ctx, bin, work, sync); err != nil {
		return err
	}
	return os.Rename(filepath.Join(work, "data"), p.data)
}

// initdb runs the binary as the server's user. The password goes through a file, since command lines are public.
func (p place) initdb(ctx context.Context, bin, work string, sync bool) error {
	password, err := os.ReadFile(p.passwordFile())
	if err != nil {
		return err
	}
	passwordCopy := filepath.Join(work, "password")
	if err := os.WriteFile(passwordCopy, password, 0o600); err != nil {
		return err
	}
	if p.cred != nil {
		for _, path := range []string{work, passwordCopy} {
			if err := os.Chown(path, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
				return err
			}
		}
	}
	// Locale C: text sorts by its bytes, the same on every machine.
	args := []string{"--pgdata", filepath.Join(work, "data"), "--username", superuser, "--pwfile", passwordCopy,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"}
	if !sync {
		args = append(args, "--no-sync")
	}
	runtime.LockOSThread() // for the death signal, see spawn
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), args...)
	cmd.Env, cmd.Dir = environment(), "/"
	cmd.SysProcAttr = processAttributes(p.cred)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run initdb: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
