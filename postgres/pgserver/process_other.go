//go:build unix && !linux

package pgserver

import "syscall"

// diesWithParent: a server outlives a kill -9 of its parent here; the next start has to stop it.
const diesWithParent = false

// processAttributes puts a child in a process group of its own, as another user if cred says so.
func processAttributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: cred}
}
