package verify_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// document reads a page of the repository; where the module lies alone, there is none.
func document(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", path))
	if os.IsNotExist(err) {
		t.Skipf("the module lies outside its repository: docs/%s isn't there", path)
	}
	must(t, err)
	return string(b)
}

// Every example of docs/formats.md is in the vectors, byte for byte.
func TestFormatsAreThoseOfTheVectors(t *testing.T) {
	t.Parallel()
	page := document(t, "formats.md")
	l := testlog.New(1).Fill(6)
	p := l.Package(4, 6)
	sth := l.Head(6)
	var v vectors
	b, err := os.ReadFile(filepath.Join(vectorsDir, "vectors.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &v))
	for name, want := range map[string]string{
		"leaf":            v.Leaves[4].Bytes,
		"leaf hash":       hex.EncodeToString(v.Leaves[4].Hash),
		"root":            hex.EncodeToString(v.Roots[6]),
		"path, first":     hex.EncodeToString(p.InclusionProof[0]),
		"path, second":    hex.EncodeToString(p.InclusionProof[1]),
		"salt":            hex.EncodeToString(v.Commitments[0].Salt),
		"commitment":      hex.EncodeToString(v.Commitments[0].Commitment),
		"payload":         string(testlog.Payload),
		"head's message":  hex.EncodeToString(verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash)),
		"head's sig":      hex.EncodeToString(sth.Signature),
		"public key":      hex.EncodeToString(v.PublicKey),
		"vkey":            v.VKey,
		"checkpoint's ID": v.CheckpointID,
		"head's ID":       v.STHID,
	} {
		if !strings.Contains(page, "`"+want+"`") && !strings.Contains(page, "\n"+want+"\n") {
			t.Errorf("%s: %s isn't on the page", name, want)
		}
	}
	for _, name := range []string{"checkpoint", "transition"} {
		b, err := os.ReadFile(filepath.Join(vectorsDir, name))
		must(t, err)
		if !strings.Contains(page, "```\n"+string(b)+"```") {
			t.Errorf("the %s isn't on the page", name)
		}
	}
	for _, hash := range regexp.MustCompile("`[0-9a-f]{64}`").FindAllString(page, -1) {
		if !strings.Contains(string(b), strings.Trim(hash, "`")) {
			t.Errorf("%s isn't in the vectors", hash)
		}
	}
}

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// The commands of docs/guides/auditor.md come to the right verdict, also on packages that are wrong.
func TestTheAuditorsCommands(t *testing.T) {
	t.Parallel()
	var script strings.Builder
	for _, block := range shellBlock.FindAllStringSubmatch(document(t, "guides/auditor.md"), -1) {
		script.WriteString(block[1])
	}
	for _, tool := range []string{"sh", "openssl", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s on the PATH: the guide's commands aren't tried", tool)
		}
	}
	if b, err := exec.Command("openssl", "version").Output(); err != nil || !strings.HasPrefix(string(b), "OpenSSL 3") {
		t.Skipf("%s isn't OpenSSL 3: the guide's commands aren't tried", strings.TrimSpace(string(b)))
	}
	shell := "sh"
	if _, err := exec.LookPath("bash"); err == nil {
		shell = "bash" // what sh is on many machines, and what runs commands in more places than others
	}
	audit := func(edit func(string) string) (string, error) {
		dir := t.TempDir()
		for _, name := range []string{"proof.json", "payload", "vkey"} {
			b, err := os.ReadFile(filepath.Join(vectorsDir, name))
			must(t, err)
			if name == "proof.json" && edit != nil {
				changed := edit(string(b))
				if changed == string(b) {
					t.Fatal("nothing was changed")
				}
				b = []byte(changed)
			}
			must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
		cmd := exec.Command(shell) // without -e, as somebody who pastes the commands
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(script.String())
		out, err := cmd.CombinedOutput()
		if _, ran := os.Stat(filepath.Join(dir, "ran")); ran == nil {
			t.Error("a command in the proof file was run")
		}
		return string(out), err
	}
	out, err := audit(nil)
	if err != nil || !strings.Contains(out, "Signature Verified Successfully") || !strings.HasSuffix(out, "the payload is the recorded one\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, change := range map[string][2]string{
		"size":      {`"tree_size": 6`, `"tree_size": 7`},
		"index":     {`"leaf_index": 4`, `"leaf_index": 5`},
		"index = n": {`"leaf_index": 4`, `"leaf_index": 6`},
		"path":      {`"f89eacf5`, `"f89eacf6`},
		"time":      {`"timestamp": 1705314705123`, `"timestamp": 1705314705124`},
		"signature": {`"signature": "61de`, `"signature": "61df`},
		"salt":      {`"payload": "a17c`, `"payload": "a17d`},
		"leaf":      {`"leaf": "eyJhdHRlbXB0`, `"leaf": "eyJhdHRlbXB1`},
		"a command": {`"tree_size": 6`, `"tree_size": a[$(touch ran)0]`},
		"another":   {`"leaf_index": 4`, `"leaf_index": a[$(touch ran)0]`},
		"a word":    {`"tree_size": 6`, `"tree_size": index`},
		"a pair":    {`"root_hash": "0989`, `"root_hash": "$(touch ran)0989`},
	} {
		if out, err := audit(func(s string) string { return strings.Replace(s, change[0], change[1], 1) }); err == nil {
			t.Errorf("%s: accepted\n%s", name, out)
		}
	}
}

// A stranger's program that imports only this module, in a module of its own, verifies a package; and its list of modules
// stays short.
func TestAStrangersProgram(t *testing.T) {
	t.Parallel()
	module, err := filepath.Abs(".")
	must(t, err)
	dir := t.TempDir()
	source, err := os.ReadFile("testdata/stranger/main.go.txt")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), source, 0o600))
	sums, err := os.ReadFile("go.sum")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o600))
	ours, err := os.ReadFile("go.mod")
	must(t, err)
	_, requires, _ := strings.Cut(string(ours), "require (")
	requires, _, _ = strings.Cut(requires, ")")
	must(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module stranger.example\n\ngo 1.26.0\n\nrequire github.com/kapsel-io/kapsel/verify v0.0.0\n"+
		"require ("+requires+")\nreplace github.com/kapsel-io/kapsel/verify => "+module+"\n"), 0o600))
	goRun := func(args ...string) string {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, b)
		}
		return string(b)
	}
	vectors := filepath.Join(module, vectorsDir)
	got := goRun("run", ".", filepath.Join(vectors, "proof.json"), filepath.Join(vectors, "vkey"), filepath.Join(vectors, "payload"))
	if got != "true https://example.com/webhook 200 payload: matched\n" {
		t.Errorf("it says %q", got)
	}
	// What it builds in is this and nothing more.
	deps := goRun("list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", ".")
	want := map[string]bool{"": true, "github.com/kapsel-io/kapsel/verify": true, "filippo.io/edwards25519": true, "github.com/transparency-dev/merkle": true}
	for _, path := range strings.Split(deps, "\n") {
		if !want[path] {
			t.Errorf("a stranger's program is built with %s", path)
		}
	}
	list := goRun("list", "-m", "all")
	if n := strings.Count(list, "\n"); n > 20 {
		t.Errorf("go list -m all has grown to %d modules:\n%s", n, list)
	}
}
