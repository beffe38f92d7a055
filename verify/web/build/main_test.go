package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// drive is a script beside the page that does what a person does: fills in the fields, chooses or drops the files, and
// reads the verdict. It writes what it read to the console.
const drive = `"use strict";
const settled = () => new Promise((resolve) => {
  const done = () => !/…$/.test(byId("verdict").textContent);
  if (done()) return resolve();
  const watch = new MutationObserver(() => { if (done()) { watch.disconnect(); resolve(); } });
  watch.observe(byId("verdict"), { childList: true, characterData: true, subtree: true });
});
const files = (name, b64) => {
  const list = new DataTransfer();
  if (b64 !== null) list.items.add(new File([Uint8Array.from(atob(b64), (c) => c.charCodeAt(0))], name));
  return list;
};
(async () => {
  await settled();
  const results = [];
  for (const c of cases) {
    byId("key").value = c.key;
    byId("payload").files = files("payload", c.payload).files;
    if (c.drop) {
      byId("proof").value = "";
      byId("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: files("proof.json", c.proof), bubbles: true, cancelable: true }));
    } else {
      byId("proof").files = files("proof.json", c.proof).files;
      byId("verify").click();
    }
    await settled();
    results.push({ headline: byId("verdict").textContent, state: byId("verdict").className, text: byId("report").textContent });
    byId("key").dispatchEvent(new InputEvent("input", { bubbles: true }));
    results[results.length - 1].after = byId("verdict").textContent;
  }
  let sent = "allowed";
  try { await fetch("https://example.com/"); } catch { sent = "refused"; }
  results.push({ headline: sent });
  for (const r of results) console.log("RESULT " + btoa(unescape(encodeURIComponent(JSON.stringify(r)))) + " END");
  console.log("ALL DONE");
})();
`

type pageCase struct {
	Key     string  `json:"key"`
	Proof   *string `json:"proof"`
	Payload *string `json:"payload"`
	Drop    bool    `json:"drop"`
}

type pageResult struct{ Headline, State, Text, After string }

// The page is built, opened from the disk in a real browser, and used.
func TestThePageVerifiesInABrowser(t *testing.T) {
	t.Parallel()
	browser := findBrowser(t)
	dir := t.TempDir()
	if err := build(dir); err != nil {
		t.Fatal(err)
	}
	l := testlog.New(1).Fill(5)
	l.Append(func(leaf *verify.Leaf) { leaf.Outcome, leaf.ResponseStatus = verify.OutcomeRetry, 503 })
	good := l.Package(4, 6)
	evil := l.Package(4, 6)
	evil.Origin = "\u202e\x1b<img src=x onerror=alert(1)>"
	bad := l.Package(4, 6)
	bad.InclusionProof[0][0] ^= 1
	payload, other := encoded(testlog.Payload), encoded([]byte("other"))
	huge := encoded(bytes.Repeat([]byte(" "), verify.MaxPackageSize+1))
	cases := []pageCase{
		{Key: l.VKey(), Proof: packed(t, good), Payload: payload},
		{Key: l.VKey(), Proof: packed(t, good), Payload: payload, Drop: true},
		{Key: fmt.Sprintf("%x", l.Public()), Proof: packed(t, good)},
		{Key: l.VKey(), Proof: packed(t, good), Payload: other},
		{Key: l.VKey(), Proof: packed(t, bad)},
		{Key: testlog.New(2).VKey(), Proof: packed(t, good)},
		{Key: l.VKey(), Proof: packed(t, evil)},
		{Key: l.VKey(), Proof: huge},
		{Key: l.VKey()},
		{Key: l.VKey(), Proof: packed(t, l.Package(5, 6))},
		{Key: "nonsense", Proof: packed(t, good)},
	}
	want := []pageResult{
		{"Verified: delivered", "verified", "payload: matched", ""},
		{"Verified: delivered", "verified", "payload: matched", ""},
		{"Verified: delivered", "verified", "origin: not bound to a log", ""},
		{"Rejected", "rejected", "payload differs", ""},
		{"Rejected", "rejected", "inclusion proof: ", ""},
		{"Rejected", "rejected", "origin: ", ""},
		{"Rejected", "rejected", `\u202e\x1b<img src=x onerror=alert(1)>`, ""},
		{"Not verified", "rejected", "larger than 1048576 bytes", ""},
		{"Not verified", "rejected", "Give the log's key", ""},
		{"Verified: NOT delivered", "verified", "attempt/retry", ""},
		{"Rejected", "rejected", "is not a vkey", ""},
	}
	got := use(t, browser, dir, cases)
	if len(got) != len(want)+1 {
		t.Fatalf("%d results: %+v", len(got), got)
	}
	for i, w := range want {
		g := got[i]
		if g.Headline != w.Headline || g.State != w.State || !strings.Contains(g.Text, w.Text) || g.After != "Nothing verified yet" {
			t.Errorf("case %d: got %+v, want %+v", i, g, w)
		}
	}
	if got[len(want)].Headline != "refused" {
		t.Error("the page may send things away")
	}
}

// use runs the cases on a copy of the page that also loads the driving script.
func use(t *testing.T, browser, dir string, cases []pageCase) (results []pageResult) {
	t.Helper()
	list, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	page = bytes.Replace(page, []byte("</head>"), []byte(`<script src="drive.js" defer></script></head>`), 1)
	for name, b := range map[string][]byte{"drive.html": page, "drive.js": []byte("const cases = " + string(list) + ";\n" + drive)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
		"--user-data-dir="+t.TempDir(), "file://"+filepath.ToSlash(filepath.Join(dir, "drive.html")))
	// Asked to, the browser ends its other processes too, which write into the profile until then.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", browser, err)
	}
	defer func() {
		cancel() // the browser stays until it is told to go
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	var said strings.Builder
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "ALL DONE") {
			return results
		}
		if found := resultLine.FindStringSubmatch(lines.Text()); found != nil {
			results = append(results, decodeResult(t, found[1]))
		}
	}
	t.Fatalf("the script wasn't done when the browser ended:\n%s", said.String())
	return nil
}

var resultLine = regexp.MustCompile(`RESULT ([A-Za-z0-9+/=]+) END`)

func decodeResult(t *testing.T, s string) (r pageResult) {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func findBrowser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no Chromium on the PATH (apt-get install chromium): the page isn't tried in a browser")
	return ""
}

func packed(t *testing.T, p *verify.ProofPackage) *string {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return encoded(b)
}

func encoded(b []byte) *string {
	s := base64.StdEncoding.EncodeToString(b)
	return &s
}

// Two builds, each compiled from nothing in a module that lies elsewhere, are the same bytes.
func TestBuildsAreReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles everything twice")
	}
	t.Parallel()
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := build(dir); err != nil {
			t.Fatal(err)
		}
		compile(t, filepath.Join(dir, "kapsel-verify"))
	}
	for _, name := range []string{"index.html", "page.js", "style.css", "wasm_exec.js", "verifier.js", "kapsel-verify"} {
		a, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("two builds of %s differ", name)
		}
	}
}

// compile builds the command as a release is built.
func compile(t *testing.T, to string) {
	t.Helper()
	module := copyModule(t)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", to, "./cmd/kapsel-verify")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, b)
	}
}

// copyModule puts the module's sources where nothing was compiled before: paths and caches mustn't show in the result.
func copyModule(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", ".."))); err != nil {
		t.Fatal(err)
	}
	return dir
}
