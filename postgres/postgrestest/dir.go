package postgrestest

import (
	"os"
	"path/filepath"
	"syscall"
)

const dirPrefix = "kapsel-postgres-"

// makeDir makes a temporary directory for a server, locked as long as this process lives, and removes those of
// processes that are gone: a test process has no moment at which it could clean up after itself.
func makeDir() (string, error) {
	removeAbandoned()
	for {
		dir, err := os.MkdirTemp("", dirPrefix)
		if err != nil {
			return "", err
		}
		if held, err = lockDir(dir); err != nil {
			continue // another process took it for abandoned before it was locked
		}
		return dir, os.Chmod(dir, 0o711) // the server's user passes through
	}
}

// held keeps the lock's file from being closed by the garbage collector.
var held *os.File

func removeAbandoned() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use
		}
		_ = os.RemoveAll(dir)
		_ = lock.Close()
	}
}

// lockDir takes the directory's lock; it ends with the process or when the file is closed.
func lockDir(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
