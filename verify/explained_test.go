package verify_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The worked example of docs/attestation.md computes what it says it does, and fails where a hash is another.
func TestTheWorkedExample(t *testing.T) {
	t.Parallel()
	var script strings.Builder
	for _, block := range shellBlock.FindAllStringSubmatch(document(t, "attestation.md"), -1) {
		script.WriteString(block[1])
	}
	for _, tool := range []string{"sh", "openssl", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s on the PATH: the example isn't tried", tool)
		}
	}
	run := func(script string) (string, error) {
		dir := t.TempDir()
		b, err := os.ReadFile(filepath.Join(vectorsDir, "proof.json"))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "proof.json"), b, 0o600))
		cmd := exec.Command("sh") // without -e, as somebody who pastes the commands
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(script)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run(script.String())
	if err != nil || !strings.Contains(out, "leaf 4 is in the tree with the root 0989feb1") || !strings.HasSuffix(out, "the tree of six contains the tree of three\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	hashes := regexp.MustCompile(`[0-9a-f]{64}`).FindAllStringIndex(script.String(), -1)
	if len(hashes) != 10 {
		t.Errorf("the example has %d hashes, want 10", len(hashes))
	}
	for _, at := range hashes {
		other := []byte(script.String())
		if other[at[0]] = '0'; script.String()[at[0]] == '0' {
			other[at[0]] = '1'
		}
		if out, err := run(string(other)); err == nil {
			t.Errorf("with %s in place of %s: accepted\n%s", other[at[0]:at[1]], script.String()[at[0]:at[1]], out)
		}
	}
}

// Every hash that docs/attestation.md and its pictures show is one of the vectors.
func TestTheHashesThatAreShown(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(vectorsDir, "vectors.json"))
	must(t, err)
	for name, want := range map[string]int{
		"attestation.md": 11, "images/attestation-inclusion.svg": 11, "images/attestation-consistency.svg": 12,
	} {
		page := document(t, name)
		shown := regexp.MustCompile(`\b(?:[0-9a-f]{64}|[0-9a-f]{8})\b`).FindAllString(page, -1)
		if len(shown) < want {
			t.Errorf("%s shows %d hashes, want %d", name, len(shown), want)
		}
		for _, hash := range shown {
			if !strings.Contains(string(b), `"`+hash) {
				t.Errorf("%s shows %s, which isn't in the vectors", name, hash)
			}
		}
	}
}
