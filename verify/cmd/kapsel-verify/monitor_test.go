package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// watched is a log behind a server and the arguments that follow it.
type watched struct {
	server *testlog.Server
	log    *testlog.Log
	dir    string
	args   []string
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{server: &testlog.Server{}, log: testlog.New(1), dir: t.TempDir()}
	w.log.Leaves = testlog.Numbered(40)
	web := httptest.NewServer(w.server)
	t.Cleanup(web.Close)
	// The logs of tests are dated 2024, so silence needs more patience than the years since.
	w.args = []string{"monitor", "--log", web.URL + "/log/x", "--vkey", w.log.VKey(), "--state", filepath.Join(w.dir, "state"),
		"--patience", "1000000h"}
	return w
}

// once looks once and wants a status.
func (w *watched) once(t *testing.T, status int, more ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(append(append(append([]string{}, w.args...), "--once"), more...), &out, &errs); got != status {
		t.Fatalf("exit status %d, want %d: %s%s", got, status, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func TestMonitorOnce(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	w.server.Show(w.log, 10, 1)
	out, _ := w.once(t, 0)
	if !strings.Contains(out, "consistent: size 10, the first head seen; it is believed") {
		t.Errorf("got %q", out)
	}
	w.server.Show(w.log, 20, 2)
	if out, _ = w.once(t, 0); !strings.Contains(out, "consistent: size 20, was 10") {
		t.Errorf("got %q", out)
	}
	out, _ = w.once(t, 0, "--json")
	var line watchLine
	if err := json.Unmarshal([]byte(out), &line); err != nil || line.Verdict != verify.Consistent || line.Head.TreeSize != 20 {
		t.Errorf("got %q: %v", out, err)
	}
}

// alarms collects what --alarm-url is sent; it refuses the first call.
func alarms(t *testing.T) (url string, got func() []map[string]any) {
	t.Helper()
	var mu sync.Mutex
	var calls [][]byte
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		b, _ := io.ReadAll(r.Body)
		calls = append(calls, b)
		if len(calls) == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(web.Close)
	return web.URL, func() []map[string]any {
		mu.Lock()
		defer mu.Unlock()
		var list []map[string]any
		for _, b := range calls {
			var m map[string]any
			if err := json.Unmarshal(b, &m); err != nil {
				t.Fatal(err)
			}
			list = append(list, m)
		}
		return list
	}
}

func TestMonitorRaisesTheAlarmAndEvidenceStands(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	url, calls := alarms(t)
	w.server.Show(w.log, 20, 1)
	w.once(t, 0)
	w.server.Show(w.log, 10, 2)
	_, errs := w.once(t, exitRejected, "--alarm-url", url)
	if !strings.Contains(errs, "ALARM rollback: sizes 20 and 10; evidence in ") {
		t.Errorf("got %q", errs)
	}
	got := calls()
	if len(got) != 2 || got[1]["verdict"] != "rollback" || got[1]["evidence"].(map[string]any)["format"] != verify.EvidenceFormat {
		t.Fatalf("alarms: %v", got)
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "rollback-*.evidence.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("evidence: %v, %v", files, err)
	}
	var out, stderr bytes.Buffer
	if code := run([]string{"evidence", files[0], "--vkey", w.log.VKey()}, &out, &stderr); code != 0 ||
		!strings.HasPrefix(out.String(), "The log contradicted itself: rollback (the smaller tree isn't the older one)\n") {
		t.Fatalf("status %d: %s%s", code, out.String(), stderr.String())
	}
	out.Reset()
	if code := run([]string{"evidence", "--json", "--vkey", testlog.New(2).VKey(), files[0]}, &out, &stderr); code != exitRejected ||
		!strings.Contains(out.String(), `"convicts": false`) {
		t.Fatalf("status %d: %s", code, out.String())
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(w.dir, "forged")
	if err := os.WriteFile(forged, bytes.Replace(b, []byte(`\n10\n`), []byte(`\n11\n`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := run([]string{"evidence", forged, "--vkey", w.log.VKey()}, &out, &stderr); code != exitRejected {
		t.Fatalf("forged evidence: status %d", code)
	}
}

// The alarm goes out even if there is no place for the evidence.
func TestTheAlarmDoesNotNeedTheDisk(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	url, calls := alarms(t)
	w.server.Show(w.log, 20, 1)
	w.once(t, 0)
	w.server.Show(w.log, 10, 2)
	_, errs := w.once(t, exitRejected, "--alarm-url", url, "--evidence", filepath.Join(w.dir, "missing"))
	if !strings.Contains(errs, "ALARM rollback: sizes 20 and 10; state of the monitor: ") {
		t.Errorf("got %q", errs)
	}
	if got := calls(); len(got) != 2 || got[1]["verdict"] != "rollback" || got[1]["evidence"] != nil {
		t.Fatalf("alarms: %v", got)
	}
}

func TestMonitorRunsACommand(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("the command is a shell script")
	}
	w := newWatched(t)
	script := filepath.Join(w.dir, "page me") // with a space: no shell takes it apart
	if err := os.WriteFile(script, []byte("#!/bin/sh\nprintf '%s %s' \"$1\" \"$2\" >\"$0.out\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.server.Show(w.log, 20, 1)
	w.once(t, 0)
	other := testlog.New(1)
	other.Leaves = testlog.Numbered(19)
	other.Leaves = append(other.Leaves, []byte("another"))
	w.server.Show(other, 20, 2)
	w.once(t, exitRejected, "--alarm-command", script)
	said, err := os.ReadFile(script + ".out")
	if err != nil || !strings.HasPrefix(string(said), "split "+w.dir) {
		t.Fatalf("the command was told %q: %v", said, err)
	}
	// A command that isn't there is said, and the status stays.
	_, errs := w.once(t, exitRejected, "--alarm-command", filepath.Join(w.dir, "missing"))
	if !strings.Contains(errs, "alarm command:") {
		t.Errorf("got %q", errs)
	}
}

func TestASilentLogRaisesTheAlarm(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	url, calls := alarms(t)
	w.server.Show(w.log, 20, 1) // dated 2024: a server that is frozen
	w.once(t, exitRejected, "--patience", "1h", "--alarm-url", url)
	if got := calls(); len(got) != 2 || got[1]["verdict"] != "silent" {
		t.Fatalf("alarms: %v", got)
	}
	w.once(t, 0) // with more patience, nothing is wrong
}

func TestMonitorSaysWhatItCannotCheck(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "\x1b[31m\u202eevil\n1\nAAAA\n\n— x AAAAAAA=\n")
	}))
	t.Cleanup(evil.Close)
	_, errs := w.once(t, exitUnchecked, "--log", evil.URL+"/log/x")
	if !strings.Contains(errs, "not checked: ") || strings.ContainsAny(errs, "\x1b\u202e") {
		t.Errorf("got %q", errs)
	}
}

func TestMonitorGoesOnUntilMisconduct(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	w.server.Show(w.log, 20, 1)
	done := make(chan int, 1)
	var out, errs lockedBuffer
	go func() { done <- run(append(append([]string{}, w.args...), "--interval", "1s"), &out, &errs) }()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	shown := false
	for {
		select {
		case code := <-done:
			if code != exitRejected || !strings.Contains(errs.String(), "ALARM rollback") {
				t.Fatalf("status %d: %s%s", code, out.String(), errs.String())
			}
			return
		case <-deadline:
			t.Fatalf("it still runs: %s%s", out.String(), errs.String())
		case <-tick.C:
			if !shown && strings.Contains(out.String(), "size 20") {
				shown = true
				w.server.Show(w.log, 10, 2)
			}
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
