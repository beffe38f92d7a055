//go:build unix && !linux

package chaos

import "syscall"

// processAttributes puts a child in a process group of its own, so that Ctrl-C reaches only the harness. If that is killed,
// its children go on here; stop them by hand.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
