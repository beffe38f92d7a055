package pgserver

import "syscall"

// diesWithParent: the kernel shuts the server down when this process ends, so a predecessor needs only waiting for.
const diesWithParent = true

// processAttributes puts a child in a process group of its own, as another user if cred says so, and has the kernel send
// it SIGQUIT (to Postgres: shut down at once, recover at the next start) when the thread that started it ends. Go sets
// the death signal after changing the user, which would clear it.
func processAttributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: cred, Pdeathsig: syscall.SIGQUIT}
}
