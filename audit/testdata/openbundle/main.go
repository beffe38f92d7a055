// Command openbundle verifies every leaf of a bundle, offline: openbundle VKEY IDENTITIES < BUNDLE.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"

	"filippo.io/age"
	"github.com/kapsel-io/kapsel/verify"
)

func main() {
	keys, err := os.Open(os.Args[2])
	check(err)
	identities, err := age.ParseIdentities(keys)
	check(err)
	plain, err := age.Decrypt(os.Stdin, identities...)
	check(err)
	lines := json.NewDecoder(plain)
	var head struct{ Package map[string]json.RawMessage }
	check(lines.Decode(&head))
	for verified, erased := 0, 0; ; {
		pkg := map[string]json.RawMessage{}
		check(lines.Decode(&pkg)) // io.EOF: the file is cut off
		switch {
		case pkg["leaves"] != nil: // the last line
			fmt.Println(verified, "leaves verified,", erased, "erased")
			return
		case pkg["leaf"] == nil:
			erased++
			continue
		}
		delete(pkg, "leaf_hash")
		for member, value := range head.Package {
			pkg[member] = value
		}
		text, err := json.Marshal(pkg) // a proof package: kapsel-verify takes it too
		check(err)
		result, err := verify.Package(text, verify.Options{VKey: os.Args[1]})
		check(err)
		log.Println(result.Leaf.AttemptID, result.Leaf.Kind, result.Leaf.Outcome, result.Leaf.EndpointURL)
		verified++
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
