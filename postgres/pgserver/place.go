//go:build unix

package pgserver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"go.uber.org/zap"
)

// relocated is where a cluster goes that Postgres couldn't reach in its own place.
const relocated = "/var/lib"

// place is where one server's files are and who owns the cluster.
type place struct {
	dir  string              // Config.Dir, absolute, without symbolic links
	data string              // the cluster; need not exist yet
	cred *syscall.Credential // who runs the server; nil: who runs us
}

func (p place) passwordFile() string { return filepath.Join(p.dir, "password") }
func (p place) logFile() string      { return filepath.Join(p.dir, "server.log") }

// findPlace makes dir and decides where its cluster is, or will be.
func findPlace(ctx context.Context, dir string, log *zap.Logger) (place, error) {
	if dir == "" {
		return place{}, errors.New("no directory given")
	}
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711 // the server's user must get through; it can't list, and the password has its own mode
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return place{}, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return place{}, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return place{}, err
	}
	p := place{dir: dir, data: filepath.Join(dir, "data")}
	switch target, err := os.Readlink(p.data); {
	case err == nil && !filepath.IsAbs(target):
		p.data = filepath.Join(dir, target)
	case err == nil:
		p.data = target
	}
	if os.Geteuid() != 0 {
		return p, nil
	}
	return p.asServerUser(ctx, log)
}

// asServerUser completes the place for root, who can't run the server.
func (p place) asServerUser(ctx context.Context, log *zap.Logger) (place, error) {
	info, err := os.Stat(p.data)
	if err == nil {
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 0 {
			p.cred = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
			return p, nil
		}
	}
	if p.cred, err = serverUser(); err != nil {
		return place{}, err
	}
	if _, err := os.Lstat(p.data); err == nil || p.reachable(ctx) {
		return p, nil
	}
	return p.relocate(log)
}

// serverUser is the user postgres, else nobody.
func serverUser() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("the server of Postgres refuses to run as root, and there is no user postgres or nobody to run it as; add one")
}

// reachable asks the kernel whether the server's user gets into dir: mode bits alone would miss ACLs and mounts.
func (p place) reachable(ctx context.Context) bool {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", ":")
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred}
	return cmd.Run() == nil
}

// relocate makes a directory that the server's user can reach and links dir/data to the cluster that will be in it. A
// crash between the two leaves an empty directory behind and nothing else.
func (p place) relocate(log *zap.Logger) (place, error) {
	sum := sha256.Sum256([]byte(p.dir))
	prefix := "kapsel-" + hex.EncodeToString(sum[:6]) + "-"
	if old, _ := filepath.Glob(filepath.Join(relocated, prefix+"*")); len(old) > 0 {
		log.Warn("clusters of an earlier directory of this name are still there; remove them if nobody needs them",
			zap.String("dir", p.dir), zap.Strings("clusters", old))
	}
	home, err := os.MkdirTemp(relocated, prefix+"*")
	if err != nil {
		return place{}, fmt.Errorf("user %d can't reach %s, and there is no other place: %w", p.cred.Uid, p.dir, err)
	}
	if err := os.Chmod(home, 0o711); err != nil {
		return place{}, err
	}
	data := filepath.Join(home, "data")
	if err := os.Symlink(data, p.data); err != nil {
		return place{}, err
	}
	log.Info("Postgres can't reach its directory; the cluster is elsewhere", zap.String("dir", p.dir), zap.String("data", data))
	p.data = data
	return p, nil
}

// version is the major version that made the cluster, "" if there is none yet.
func (p place) version() string {
	version, err := os.ReadFile(filepath.Join(p.data, "PG_VERSION"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(version))
}

// password reads the superuser's password, or makes one for a cluster that is yet to be made. It is on disk before the
// cluster that needs it.
func (p place) password() (string, error) {
	stored, err := os.ReadFile(p.passwordFile())
	switch {
	case err == nil:
		return strings.TrimSpace(string(stored)), nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read Postgres password: %w", err)
	case p.version() != "":
		return "", fmt.Errorf("read Postgres password: %s is missing: restore it, or remove %s and %s to start afresh",
			p.passwordFile(), p.data, p.dir)
	}
	password := rand.Text()
	draft := p.passwordFile() + ".new" // renamed, so that a crash can't leave half a password
	if err := os.WriteFile(draft, []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write Postgres password: %w", err)
	}
	if err := os.Rename(draft, p.passwordFile()); err != nil {
		return "", fmt.Errorf("write Postgres password: %w", err)
	}
	return password, nil
}
