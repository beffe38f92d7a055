package verify_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

func ExamplePackage() {
	// proof.json as downloaded, body.json as received, and the vkey that the log's operator publishes.
	pkg, body, vkey := exampleFiles()

	result, err := verify.Package(pkg, verify.Options{VKey: vkey, Payload: &body})
	if err != nil {
		fmt.Println("rejected:", err)
		return
	}
	fmt.Println(result.Delivered(), result.Leaf.EndpointURL, result.Leaf.ResponseStatus)
	fmt.Println("payload:", result.Payload)
	// Output:
	// true https://example.com/webhook 200
	// payload: matched
}

func ExampleProof() {
	l := testlog.New(1).Fill(5)
	leaf, proof := l.Leaves[3], verify.InclusionProof{LeafIndex: 3, TreeSize: 5, Hashes: testlog.Path(3, l.Leaves)}

	fmt.Println(verify.Proof(leaf, proof, l.Head(5), l.Public()))
	fmt.Println(verify.Proof(append(leaf, ' '), proof, l.Head(5), l.Public()))
	// Output:
	// <nil>
	// inclusion proof: leaf 3 isn't in the tree of size 5: the path leads to another root
}

func exampleFiles() (pkg, body []byte, vkey string) {
	l := testlog.New(1).Fill(5)
	pkg, err := json.Marshal(l.Package(3, 5))
	if err != nil {
		panic(err)
	}
	return pkg, testlog.Payload, l.VKey()
}

// The README shows the code of ExamplePackage and the output of the program, both of which other tests run.
func TestREADMEIsTrue(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	must(t, err)
	for file, block := range map[string]string{"example_test.go": "```go\n", "cmd/kapsel-verify/testdata/verified.txtar": "body.json\n"} {
		_, rest, found := strings.Cut(string(readme), block)
		shown, _, closed := strings.Cut(rest, "```")
		source, err := os.ReadFile(file)
		must(t, err)
		if !found || !closed || shown == "" || !strings.Contains(string(source), shown) {
			t.Errorf("what the README shows isn't in %s:\n%s", file, shown)
		}
	}
}
