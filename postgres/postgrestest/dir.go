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
		if _, err = lockDir(dir); err != nil {
			continue // another process took it for abandoned before it was locked
		}
		return dir, os.Chmod(dir, 0o711) // the server's user passes through
	}
}

func removeAbandoned() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use
		}
		_ = os.RemoveAll(dir)
		_ = syscall.Close(lock)
	}
}

// lockDir takes the directory's lock, which is held until the descriptor is closed or the process ends. (An *os.File
// would be closed by the garbage collector.)
func lockDir(dir string) (descriptor int, err error) {
	descriptor, err = syscall.Open(filepath.Join(dir, "lock"), syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, err
	}
	if err := syscall.Flock(descriptor, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = syscall.Close(descriptor)
		return 0, err
	}
	return descriptor, nil
}
