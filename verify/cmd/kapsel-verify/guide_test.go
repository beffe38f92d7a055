package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/guides/auditor.md shows of this command's output is what it prints of the test vectors.
func TestTheAuditorsGuide(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../../docs/guides/auditor.md")
	if os.IsNotExist(err) {
		t.Skip("the module lies outside its repository: the guide isn't there")
	}
	if err != nil {
		t.Fatal(err)
	}
	vector := func(name string) string { return filepath.Join("../../testdata/vectors", name) }
	vkey, err := os.ReadFile(vector("vkey"))
	if err != nil {
		t.Fatal(err)
	}
	proofs := t.TempDir()
	proof, err := os.ReadFile(vector("proof.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proofs, "proof.json"), proof, 0o600); err != nil {
		t.Fatal(err)
	}
	held := strings.NewReplacer(`"$(cat vkey)"`, strings.TrimSpace(string(vkey)), "proofs/", proofs,
		"evidence.json", vector("evidence.json"), " proof.json", " "+vector("proof.json"), " payload", " "+vector("payload"))
	shown := 0
	for _, block := range regexp.MustCompile("(?s)```console\n\\$ kapsel-verify ([^\n]*)\n(.*?)```").FindAllStringSubmatch(string(guide), -1) {
		if block[2] == "" { // it goes on for ever
			continue
		}
		shown++
		var stdout, stderr bytes.Buffer
		if code := run(strings.Fields(held.Replace(block[1])), &stdout, &stderr); code != 0 || stderr.Len() > 0 {
			t.Errorf("%s: exit status %d, %s", block[1], code, stderr.String())
		}
		if stdout.String() != block[2] {
			t.Errorf("%s prints\n%s\nand the guide shows\n%s", block[1], stdout.String(), block[2])
		}
	}
	if shown != 3 {
		t.Errorf("the guide shows the output of %d commands, want 3", shown)
	}
}
