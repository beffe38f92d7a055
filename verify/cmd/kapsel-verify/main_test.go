package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kapsel-verify": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: setup, Cmds: map[string]func(*testscript.TestScript, bool, []string){
		"rejected": exits(exitRejected),
		"unusable": exits(exitUsage),
	}})
}

// exits is a script command that runs kapsel-verify and wants this status, nothing on standard output and one line on
// standard error.
func exits(status int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		for i, a := range args { // what names a file of the script is read from its directory
			if i > 0 && (args[i-1] == "--proof" || args[i-1] == "--payload" || args[i-1] == "--response" || args[i-1] == "--proofs" || args[i-1] == "--leaf") {
				args[i] = ts.MkAbs(a)
			}
		}
		var stdout, stderr strings.Builder
		if got := run(args, &stdout, &stderr); got != status {
			ts.Fatalf("exit status %d, want %d: %s", got, status, stderr.String())
		}
		if stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.HasSuffix(stderr.String(), "\n") {
			ts.Fatalf("want one line of standard error, got %q and %q", stdout.String(), stderr.String())
		}
		_, err := ts.Stderr().Write([]byte(stderr.String()))
		ts.Check(err)
	}
}

// setup writes a log's packages into the script's directory, and its keys into its environment.
func setup(env *testscript.Env) error {
	l := testlog.New(1)
	delivered := l.Append(nil)
	failed := l.Append(func(leaf *verify.Leaf) {
		leaf.Outcome, leaf.Error = verify.OutcomeRetry, "timeout"
		leaf.ResponseStatus, leaf.ResponseHash, leaf.ResponseSize = 0, "", 0
	})
	dead := l.Append(func(leaf *verify.Leaf) {
		leaf.Kind, leaf.Outcome = verify.KindDead, "exhausted"
		leaf.ResponseStatus, leaf.ResponseHash, leaf.ResponseSize = 0, "", 0
	})
	late := l.Append(func(leaf *verify.Leaf) { leaf.AttemptedAt = "2030-01-01T00:00:00.000Z" })
	unknown := len(l.Leaves)
	l.Leaves = append(l.Leaves, []byte(strings.Replace(string(l.Leaves[delivered]), `"kind":"attempt"`, `"kind":"mystery"`, 1)))

	logged := len(l.Leaves)
	packages := map[string]*verify.ProofPackage{}
	for name, index := range map[string]int{
		"proof.json": delivered, "failed.json": failed, "dead.json": dead, "late.json": late, "unknown.json": unknown,
	} {
		packages[name] = l.Package(index, len(l.Leaves))
	}
	erased := l.Package(delivered, len(l.Leaves))
	erased.Salts = nil
	packages["erased.json"] = erased
	nosalt := l.Package(delivered, len(l.Leaves))
	nosalt.Salts.URL = nil
	packages["nosalt.json"] = nosalt
	bad := l.Package(delivered, len(l.Leaves))
	bad.InclusionProof[0][0] ^= 1
	packages["badpath.json"] = bad
	evil := l.Package(delivered, len(l.Leaves))
	evil.Origin = "a\u202eb\u001b[31mc\n"
	packages["evil.json"] = evil

	acceptance := testlog.New(1) // another tree under the same key
	accepted := acceptance.Append(func(leaf *verify.Leaf) {
		*leaf = verify.Leaf{AttemptedAt: leaf.AttemptedAt, EndpointID: leaf.EndpointID, EventID: leaf.EventID, Kind: verify.KindAccepted,
			Nonce: leaf.Nonce, Origin: leaf.Origin, PayloadHash: leaf.PayloadHash, PayloadSize: leaf.PayloadSize, Seq: 1, TenantID: leaf.TenantID, V: 1}
	})
	packages["accepted.json"] = acceptance.Package(accepted, 1)

	if err := writeChain(l, env.WorkDir); err != nil {
		return err
	}
	files := map[string][]byte{"body.json": testlog.Payload, "response": testlog.Response, "other": []byte("other"), "empty": nil,
		"proof.tlog-proof": l.TLogProof(delivered, logged).Bytes(), "leaf": l.Leaves[delivered]}
	gone := l.TLogProof(delivered, logged)
	gone.Leaf, gone.Salts = nil, nil
	files["gone.tlog-proof"] = gone.Bytes()
	for name, p := range packages {
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		files[name] = b
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), b, 0o600); err != nil {
			return err
		}
	}
	env.Setenv("KEY", hex.EncodeToString(l.Public()))
	env.Setenv("OTHERKEY", hex.EncodeToString(testlog.New(2).Public()))
	env.Setenv("VKEY", l.VKey())
	env.Setenv("SUCCESSOR", successorOf(l).VKey())
	env.Setenv("ORIGIN", l.Origin)
	env.Setenv("URL", testlog.URL)
	env.Setenv("LEAFHASH", hex.EncodeToString(verify.LeafHash(l.Leaves[delivered])))
	env.Setenv("ACCEPTED", hex.EncodeToString(verify.LeafHash(acceptance.Leaves[accepted])))
	env.Setenv("EVENT", testlog.ID("evt", accepted))
	env.Setenv("DELIVERY", testlog.ID("dlv", delivered))
	return nil
}

// successorOf is an empty log that goes on where l was closed.
func successorOf(l *testlog.Log) *testlog.Log {
	successor := testlog.New(3)
	successor.Origin = l.Origin + "2"
	return successor
}

// writeClosed writes the packages of a delivery whose second and last leaf is in the successor of its log.
func writeClosed(l *testlog.Log, dir string) error {
	successor, previous, first := successorOf(l), "", len(l.Leaves)
	for i, log := range []*testlog.Log{l, successor} {
		n := log.Append(func(leaf *verify.Leaf) {
			leaf.DeliveryID, leaf.EventID, leaf.PayloadHash = testlog.ID("dlv", 78), testlog.ID("evt", 78), l.Leaf(first).PayloadHash
			leaf.Seq, leaf.AttemptNumber, leaf.PreviousLeafHash = int64(i+1), int64(i+1), previous
			if log == l {
				leaf.Outcome, leaf.ResponseStatus = verify.OutcomeRetry, 503
			}
		})
		previous = hex.EncodeToString(verify.LeafHash(log.Leaves[n]))
		b, err := json.Marshal(log.Package(n, len(log.Leaves)))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.json", i+1)), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// writeChain logs a delivery of three attempts and writes its packages: all of them, without the second, with one of
// another delivery, and one that goes on in the successor of a closed log.
func writeChain(l *testlog.Log, dir string) error {
	previous, first := "", len(l.Leaves)
	for seq := int64(1); seq <= 3; seq++ {
		n := l.Append(func(leaf *verify.Leaf) {
			leaf.DeliveryID, leaf.EventID, leaf.PayloadHash = testlog.ID("dlv", 77), testlog.ID("evt", 77), l.Leaf(first).PayloadHash
			leaf.Seq, leaf.AttemptNumber, leaf.PreviousLeafHash = seq, seq, previous
			if seq < 3 {
				leaf.Outcome, leaf.ResponseStatus = verify.OutcomeRetry, 503
			}
		})
		previous = hex.EncodeToString(verify.LeafHash(l.Leaves[n]))
	}
	if err := os.MkdirAll(filepath.Join(dir, "closed"), 0o700); err != nil {
		return err
	}
	if err := writeClosed(l, filepath.Join(dir, "closed")); err != nil {
		return err
	}
	for name, indexes := range map[string][]int{"chain": {first, first + 1, first + 2}, "gap": {first, first + 2}, "mixed": {0, first}} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
		for i, index := range indexes {
			p := l.Package(index, len(l.Leaves))
			p.Salts.Payload = l.Package(first, len(l.Leaves)).Salts.Payload
			b, err := json.Marshal(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name, fmt.Sprintf("%d.json", i+1)), b, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}
