package chaos

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/monitor"
)

// heads follows the log at both apis with the monitor that anybody can run, and remembers every head that it was shown.
type heads struct {
	monitors []*monitor.Monitor
	seen     map[int64][]byte // root by size
	checks   int              // that compared two heads
	failed   int              // that found nothing out, because an api was away
	newest   time.Time        // when a head was shown that hadn't been
	longest  time.Duration    // between two of these
	broken   func(promise, format string, args ...any)
}

func newHeads(m *machine) (*heads, error) {
	h := &heads{seen: map[int64][]byte{}, broken: m.broken}
	key, err := hex.DecodeString(m.made.PublicKey)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(m.config.Dir, "monitor")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, url := range m.urls {
		// One state for each api would miss that the two contradict each other: they share it. Checks come one after the other.
		follow, err := monitor.New(monitor.Config{
			URL: url + "/log/" + m.made.LogID, PublicKey: key, Origin: m.made.Origin, State: filepath.Join(dir, "state.json"), Evidence: dir,
		})
		if err != nil {
			return nil, err
		}
		h.monitors = append(h.monitors, follow)
	}
	return h, nil
}

// run looks at both apis every second until ctx ends, and once more then.
func (h *heads) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, m := range h.monitors {
			h.check(ctx, m)
		}
	}
}

func (h *heads) check(ctx context.Context, m *monitor.Monitor) {
	bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	report, err := m.Check(bounded)
	switch {
	case errors.Is(err, monitor.ErrResponse) || bounded.Err() != nil:
		h.failed++ // the api is away, or there is no head yet
		return
	case err != nil: // it answered, but with something that doesn't hold
		h.broken(promiseMonitor, "%v", err)
		return
	}
	if report.Verdict.Misconduct() {
		h.broken(promiseMonitor, "%s: size %d against size %d; evidence in %s", report.Verdict, report.Head.TreeSize, report.Seen.TreeSize, report.Evidence)
	}
	if !report.First && report.Verdict == verify.Consistent {
		h.checks++
	}
	size := int64(report.Head.TreeSize)
	if before, ok := h.seen[size]; ok && !bytes.Equal(before, report.Head.RootHash) {
		h.broken(promiseRoots, "size %d was shown with the roots %x and %x", size, before, report.Head.RootHash)
	}
	if _, ok := h.seen[size]; !ok {
		if !h.newest.IsZero() {
			h.longest = max(h.longest, time.Since(h.newest))
		}
		h.newest = time.Now()
	}
	h.seen[size] = report.Head.RootHash
}
