//go:build unix

package pgserver

import (
	"fmt"
	"io"
	"os"
	"strings"
)

const (
	maxLogSize = 16 << 20 // bytes, looked at once a start
	maxLogTail = 4 << 10  // bytes of it in an error
)

// openLog opens the server's log for appending; a large one is set aside first.
func (p place) openLog() (*os.File, error) {
	if info, err := os.Stat(p.logFile()); err == nil && info.Size() > maxLogSize {
		if err := os.Rename(p.logFile(), p.logFile()+".1"); err != nil {
			return nil, fmt.Errorf("set server log aside: %w", err)
		}
	}
	f, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open server log: %w", err)
	}
	return f, nil
}

// logTail returns the end of what was logged after position from, for an error message: what can't be read is empty.
func (p place) logTail(from int64) string {
	f, err := os.Open(p.logFile())
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil {
		from = max(from, info.Size()-maxLogTail)
	}
	tail, _ := io.ReadAll(io.NewSectionReader(f, from, maxLogTail))
	return strings.TrimSpace(string(tail))
}
