package chaos

import "syscall"

// processAttributes puts a child in a process group of its own, so that Ctrl-C reaches only the harness, and has the kernel
// kill it when the harness dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
