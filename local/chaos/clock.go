package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// jump is how far a clock jumps.
const jump = 2 * time.Minute

// clock is the time of the Postgres servers: the machine's, and so much more. libfaketime reads it from a file while they run. Their
// monotonic clock goes on as it was, as it does when an operator or a virtual machine sets the time.
type clock struct {
	library, file string

	mu   sync.Mutex
	used []int // processes that have used it
}

// newClock makes the clock of a run; it shows the machine's time.
func newClock(dir string) (*clock, error) {
	library, err := clockLibrary()
	if err != nil {
		return nil, err
	}
	c := &clock{library: library, file: filepath.Join(dir, "clock")}
	return c, c.set(0)
}

// clockRefused says why no clock can jump here, "" if one can.
func clockRefused() string {
	library, err := clockLibrary()
	if err != nil {
		return err.Error()
	}
	cmd := exec.Command("date", "+%s")
	cmd.Env = []string{"LD_PRELOAD=" + library, "FAKETIME=+" + strconv.Itoa(int(jump.Seconds()))}
	output, err := cmd.Output()
	if err != nil {
		return err.Error()
	}
	shown, err := strconv.ParseInt(strings.TrimSpace(string(output)), 10, 64)
	if err != nil || time.Until(time.Unix(shown, 0)) < jump/2 {
		return library + " doesn't change the time of a program"
	}
	return ""
}

func clockLibrary() (string, error) {
	for _, pattern := range []string{"/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 { // the only error is a malformed pattern
			return found[0], nil
		}
	}
	return "", errors.New("libfaketime isn't installed (apt-get install libfaketime)")
}

// environment has a server use the clock. A server looks into the file once a second.
func (c *clock) environment() []string {
	if c == nil {
		return nil
	}
	return []string{
		"LD_PRELOAD=" + c.library, "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_CACHE_DURATION=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1",
	}
}

// usedBy notes a server's process, whose shared memory libfaketime leaves behind if it is killed.
func (c *clock) usedBy(pid int) {
	if c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.used = append(c.used, pid)
	}
}

// clean removes what is left behind.
func (c *clock) clean() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pid := range c.used {
		_ = os.Remove(fmt.Sprintf("/dev/shm/faketime_shm_%d", pid))
		_ = os.Remove(fmt.Sprintf("/dev/shm/sem.faketime_sem_%d", pid))
	}
}

// set has the clock show so much more than the machine's.
func (c *clock) set(ahead time.Duration) error {
	draft := c.file + ".new"                                                                            // renamed, so that nobody reads half of it
	if err := os.WriteFile(draft, fmt.Appendf(nil, "%+d\n", int(ahead.Seconds())), 0o644); err != nil { //nolint:gosec // Postgres's user reads it
		return err
	}
	return os.Rename(draft, c.file)
}

// jumpClock has the clock of Postgres jump, and back when the fault is over.
func (m *machine) jumpClock(ctx context.Context, where string) (func(context.Context) error, error) {
	ahead := jump
	if where == "back" {
		ahead = -jump
	}
	if err := m.database.clock.set(ahead); err != nil {
		return nil, err
	}
	back := func(ctx context.Context) error {
		return errors.Join(m.database.clock.set(0), m.database.awaitClock(ctx, 0))
	}
	return back, m.database.awaitClock(ctx, ahead)
}

// awaitClock waits until Postgres shows so much more than the machine's clock.
func (d *database) awaitClock(ctx context.Context, ahead time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		shown, err := d.now().time(ctx)
		if off := time.Until(shown) - ahead; err == nil && off.Abs() < jump/2 {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the clock of Postgres doesn't jump: it shows %s", shown), err)
		}
	}
}
