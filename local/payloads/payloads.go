// Package payloads holds real webhooks for the demo, the tests and the benchmarks: payloads that GitHub documents, whose
// source and licence are named in github-webhooks/README.md.
package payloads

import (
	"embed"
	"fmt"
	"path"
	"strings"
)

//go:embed github-webhooks/*.json
var files embed.FS

// Payload is one webhook's body and the event that GitHub names in X-GitHub-Event.
type Payload struct {
	Event string
	Body  []byte
}

// All returns every payload in the order of the file names, NNN-<event>.json.
func All() ([]Payload, error) {
	entries, err := files.ReadDir("github-webhooks")
	if err != nil {
		return nil, err
	}
	var all []Payload
	for _, entry := range entries {
		body, err := files.ReadFile(path.Join("github-webhooks", entry.Name()))
		if err != nil {
			return nil, err
		}
		_, event, ok := strings.Cut(strings.TrimSuffix(entry.Name(), ".json"), "-")
		if !ok {
			return nil, fmt.Errorf("payload %s has no event in its name", entry.Name())
		}
		all = append(all, Payload{Event: event, Body: body})
	}
	return all, nil
}
