package monitor_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
	"github.com/kapsel-io/kapsel/verify/monitor"
)

// bench is a log behind a server, and a monitor that follows it.
type bench struct {
	server *testlog.Server
	config monitor.Config
}

func setup(t *testing.T) *bench {
	t.Helper()
	b := &bench{server: &testlog.Server{}}
	web := httptest.NewServer(b.server)
	t.Cleanup(web.Close)
	dir := t.TempDir()
	l := testlog.New(1)
	b.config = monitor.Config{
		URL: web.URL + "/log/" + testlog.ID("log", 1), PublicKey: l.Public(), Origin: l.Origin,
		State: filepath.Join(dir, "state.json"), Evidence: dir,
	}
	return b
}

// check makes a monitor afresh, as a restart would, and looks once.
func (b *bench) check(t *testing.T) (monitor.Report, error) {
	t.Helper()
	m, err := monitor.New(b.config)
	if err != nil {
		t.Fatal(err)
	}
	return m.Check(t.Context())
}

// show publishes a size and wants this verdict.
func (b *bench) show(t *testing.T, l *testlog.Log, size int, ms int64, want verify.Verdict) monitor.Report {
	t.Helper()
	b.server.Show(l, size, ms)
	r, err := b.check(t)
	if err != nil {
		t.Fatalf("size %d: %v", size, err)
	}
	if r.Verdict != want {
		t.Fatalf("size %d: %q, want %q", size, r.Verdict, want)
	}
	return r
}

// numbered is a log whose leaves cost little to make; the monitor never reads leaves.
func numbered(n int) *testlog.Log {
	l := testlog.New(1)
	l.Leaves = testlog.Numbered(n)
	return l
}

// branch is another tree with the same first n leaves.
func branch(l *testlog.Log, n int) *testlog.Log {
	b := *l
	b.Leaves = append([][]byte{}, l.Leaves...)
	for i := n; i < len(b.Leaves); i++ {
		b.Leaves[i] = append([]byte("x"), b.Leaves[i]...)
	}
	return &b
}

func TestItFollowsALogThatGrows(t *testing.T) {
	t.Parallel()
	for name, tiles := range map[string]bool{"tiles": true, "api": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, l := setup(t), numbered(70_000)
			if !tiles {
				b.server.WithoutTiles()
			}
			if r := b.show(t, l, 1, 1, verify.Consistent); !r.First {
				t.Fatal("the first head isn't said to be the first")
			}
			for i, size := range []int{2, 3, 7, 8, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 70_000} {
				r := b.show(t, l, size, int64(i+2), verify.Consistent)
				if r.First || r.Head.TreeSize != uint64(size) {
					t.Fatalf("got %+v", r)
				}
			}
			b.show(t, l, 70_000, 100, verify.Consistent) // idle
			b.show(t, l, 69_999, 50, verify.Stale)
			if r := b.show(t, l, 70_000, 101, verify.Consistent); r.Seen.Timestamp != testlog.Start+100 {
				t.Fatalf("a stale head was remembered: %+v", r.Seen)
			}
		})
	}
}

func TestMisconductIsToldApartAndKept(t *testing.T) {
	t.Parallel()
	l := numbered(400)
	for name, c := range map[string]struct {
		shown *testlog.Log
		size  int
		ms    int64
		want  verify.Verdict
	}{
		"split":                        {branch(l, 255), 256, 20, verify.Split},
		"fork":                         {branch(l, 200), 300, 20, verify.Fork},
		"rollback":                     {l, 255, 20, verify.Rollback},
		"rollback of another tree":     {branch(l, 0), 255, 20, verify.Rollback},
		"a larger head, dated earlier": {l, 300, 5, verify.Rollback},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.show(t, l, 256, 10, verify.Consistent)
			before := read(t, b.config.State)
			r := b.show(t, c.shown, c.size, c.ms, c.want)
			e, err := verify.ParseEvidence(read(t, r.Evidence))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := e.Judge(l.VKey()); err != nil || e.Verdict != c.want {
				t.Fatalf("evidence %q: %v", e.Verdict, err)
			}
			if string(read(t, b.config.State)) != string(before) {
				t.Error("the contradicting head was remembered")
			}
			again := b.show(t, c.shown, c.size, c.ms, c.want)
			if again.Evidence != r.Evidence {
				t.Errorf("kept twice: %s and %s", r.Evidence, again.Evidence)
			}
		})
	}
}

// A head that is smaller and older is only stale, unless the log's own tiles show that it is of another tree.
func TestAnOldHeadOfAnotherTree(t *testing.T) {
	t.Parallel()
	b, l := setup(t), numbered(400)
	b.show(t, l, 256, 10, verify.Consistent)
	b.show(t, branch(l, 100), 150, 5, verify.Stale)
	b.server.WithTilesOf(l)
	b.show(t, branch(l, 100), 150, 5, verify.Fork)
	b.show(t, l, 150, 5, verify.Stale)
}

// Without tiles a fork shows at sizes that aren't powers of two; at the others the log only fails to prove its honesty.
func TestForksWithoutTiles(t *testing.T) {
	t.Parallel()
	l := numbered(400)
	b := setup(t)
	b.server.WithoutTiles()
	b.show(t, l, 255, 10, verify.Consistent)
	b.show(t, branch(l, 100), 300, 20, verify.Fork)
	b = setup(t)
	b.server.WithoutTiles()
	b.show(t, l, 256, 10, verify.Consistent)
	b.server.Show(branch(l, 100), 300, 20)
	_, err := b.check(t)
	wantError(t, err, verify.ErrConsistency)
}

func TestHeadsThatAreNotTheLogs(t *testing.T) {
	t.Parallel()
	b, l := setup(t), numbered(20)
	b.show(t, l, 10, 10, verify.Consistent)
	thief := &testlog.Log{Origin: l.Origin, Key: testlog.Key(7), Leaves: l.Leaves}
	b.server.Show(thief, 20, 20)
	_, err := b.check(t)
	wantError(t, err, verify.ErrUntrustedKey)
	other := &testlog.Log{Origin: "other.example/log/x", Key: l.Key, Leaves: l.Leaves}
	b.server.Show(other, 20, 20)
	_, err = b.check(t)
	wantError(t, err, verify.ErrOrigin)
	b.server.Show(l, 20, 20+int64(30*365*24*time.Hour/time.Millisecond))
	_, err = b.check(t)
	wantError(t, err, monitor.ErrResponse)
	b.show(t, l, 20, 20, verify.Consistent) // none of them was remembered
}

func TestItFollowsAKeyThatChanges(t *testing.T) {
	t.Parallel()
	b, l := setup(t), testlog.New(1).Fill(4)
	b.show(t, l, 4, 1, verify.Consistent)
	note := l.Transition(testlog.Key(2), verify.ReasonRotation)
	l.Fill(9)
	b.server.Show(l, 9, 2)
	_, err := b.check(t)
	wantError(t, err, verify.ErrUntrustedKey)
	b.config.Transitions = [][]byte{[]byte(note)}
	b.show(t, l, 9, 2, verify.Consistent)

	// After a compromise the new key is given by hand, and what was seen under the old one still counts.
	b, l = setup(t), testlog.New(1).Fill(4)
	b.show(t, l, 4, 1, verify.Consistent)
	note = l.Transition(testlog.Key(2), verify.ReasonCompromise)
	l.Fill(9)
	b.server.Show(l, 9, 2)
	b.config.PublicKey = l.Public()
	_, err = b.check(t)
	wantError(t, err, monitor.ErrState)
	b.config.Transitions = [][]byte{[]byte(note)}
	b.show(t, l, 9, 2, verify.Consistent)
	b.config.PublicKey = testlog.New(1).Public()
	_, err = b.check(t)
	wantError(t, err, monitor.ErrState) // trust doesn't go forward over a compromise
}

func TestHostileServers(t *testing.T) {
	t.Parallel()
	l := numbered(600)
	checkpoint := l.Checkpoint(l.HeadAt(600, 20))
	endless := func(w http.ResponseWriter) {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}
	// Each answers for the checkpoint or, after an honest checkpoint, for everything else.
	for name, c := range map[string]struct {
		checkpoint, rest http.HandlerFunc
		want             error
	}{
		"endless checkpoint":    {checkpoint: func(w http.ResponseWriter, _ *http.Request) { endless(w) }, want: monitor.ErrResponse},
		"redirected checkpoint": {checkpoint: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, want: monitor.ErrResponse},
		"error status":          {checkpoint: func(w http.ResponseWriter, r *http.Request) { http.Error(w, "\x1b[31m", 500) }, want: monitor.ErrResponse},
		"no checkpoint":         {checkpoint: http.NotFound, want: monitor.ErrResponse},
		"nonsense":              {checkpoint: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, want: verify.ErrNoteFormat},
		"huge header":           {checkpoint: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<17)) }, want: monitor.ErrResponse},
		"cut off": {checkpoint: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(checkpoint[:50])
		}, want: monitor.ErrResponse},
		"endless tiles": {rest: func(w http.ResponseWriter, _ *http.Request) { endless(w) }, want: monitor.ErrResponse},
		"redirected tiles": {rest: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		}, want: monitor.ErrResponse},
		"short tiles":             {rest: func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 31)) }, want: monitor.ErrResponse},
		"tiles of zeroes":         {rest: zeroTiles, want: verify.ErrConsistency},
		"no tiles, no proof":      {rest: http.NotFound, want: monitor.ErrNotFound},
		"no tiles, endless proof": {rest: api(endless), want: monitor.ErrResponse},
		"no tiles, no JSON":       {rest: api(func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") }), want: monitor.ErrResponse},
		"no tiles, too many hashes": {rest: api(func(w http.ResponseWriter) {
			_ = json.NewEncoder(w).Encode(map[string]any{"consistency_proof": make([]string, 64)})
		}), want: monitor.ErrResponse},
		"no tiles, empty proof": {rest: api(func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"consistency_proof":[]}`) }), want: verify.ErrConsistency},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.show(t, l, 300, 10, verify.Consistent)
			hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case !strings.HasSuffix(r.URL.Path, "/checkpoint"):
					c.rest(w, r)
				case c.checkpoint != nil:
					c.checkpoint(w, r)
				default:
					_, _ = w.Write(checkpoint)
				}
			}))
			t.Cleanup(hostile.Close)
			before := read(t, b.config.State)
			b.config.URL = hostile.URL + "/log/" + testlog.ID("log", 1)
			r, err := b.check(t)
			wantError(t, err, c.want)
			if r.Verdict != "" || string(read(t, b.config.State)) != string(before) {
				t.Errorf("something was believed: %+v", r)
			}
		})
	}
}

func zeroTiles(w http.ResponseWriter, r *http.Request) {
	width := 256
	if _, partial, ok := strings.Cut(r.URL.Path, ".p/"); ok {
		_, _ = fmt.Sscan(partial, &width)
	}
	_, _ = w.Write(make([]byte, 32*width))
}

// api has no tiles.
func api(answer func(http.ResponseWriter)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/tile/") {
			http.NotFound(w, r)
			return
		}
		answer(w)
	}
}

func TestAServerThatNeverEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	released := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-released:
		}
	}))
	t.Cleanup(func() { close(released); slow.Close() })
	b.config.URL = slow.URL + "/log/x"
	m, err := monitor.New(b.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = m.Check(ctx)
	wantError(t, err, context.DeadlineExceeded)
}

func TestAStateThatCannotBeTrusted(t *testing.T) {
	t.Parallel()
	l := numbered(20)
	for name, spoil := range map[string]func([]byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut short":      func(b []byte) []byte { return b[:len(b)/2] },
		"another format": func(b []byte) []byte { return []byte(strings.Replace(string(b), "kapsel.monitor/v1", "x", 1)) },
		"another size":   func(b []byte) []byte { return []byte(strings.Replace(string(b), `\n10\n`, `\n11\n`, 1)) },
		"unknown member": func(b []byte) []byte { return []byte(strings.Replace(string(b), "{", `{"x":1,`, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.show(t, l, 10, 10, verify.Consistent)
			good := read(t, b.config.State)
			spoilt := spoil(good)
			if string(spoilt) == string(good) {
				t.Fatal("nothing was spoilt")
			}
			if err := os.WriteFile(b.config.State, spoilt, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := b.check(t)
			wantError(t, err, monitor.ErrState)
			if string(read(t, b.config.State)) != string(spoilt) {
				t.Error("the state was overwritten")
			}
		})
	}
	// What can't be written is not said to have been seen.
	b := setup(t)
	b.config.State = filepath.Join(t.TempDir(), "missing", "state.json")
	b.server.Show(l, 10, 10)
	_, err := b.check(t)
	wantError(t, err, monitor.ErrState)
}

func TestUnusableConfigurations(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*monitor.Config)
		want error
	}{
		"no URL":       {func(c *monitor.Config) { c.URL = "" }, monitor.ErrURL},
		"a file":       {func(c *monitor.Config) { c.URL = "file:///etc/passwd" }, monitor.ErrURL},
		"a password":   {func(c *monitor.Config) { c.URL = "https://a:b@example.com/log/x" }, monitor.ErrURL},
		"a query":      {func(c *monitor.Config) { c.URL += "?x=1" }, monitor.ErrURL},
		"no key":       {func(c *monitor.Config) { c.PublicKey = nil }, verify.ErrKey},
		"a weak key":   {func(c *monitor.Config) { c.PublicKey = make(ed25519.PublicKey, 32) }, verify.ErrKey},
		"a bad origin": {func(c *monitor.Config) { c.Origin = "a b" }, verify.ErrOrigin},
		"a bad note":   {func(c *monitor.Config) { c.Transitions = [][]byte{[]byte("x")} }, verify.ErrKeyHistory},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c.edit(&b.config)
			_, err := monitor.New(b.config)
			wantError(t, err, c.want)
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}
