package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// The bounds of a body that is read as JSON. A larger one is accepted and delivered all the same; only nobody looks into it.
const (
	MaxDocument      = 1 << 20 // bytes
	MaxDocumentDepth = 64      // arrays and objects within each other
)

// ErrDocument: the body is larger or nested deeper than what is read.
var ErrDocument = errors.New("body is too large or too deep to look into")

// Document is a webhook's body as JSON, read once, when somebody first asks for it. It isn't safe for concurrent use.
type Document struct {
	body  []byte
	read  bool
	value any
	err   error
}

// NewDocument reads nothing yet.
func NewDocument(body []byte) *Document { return &Document{body: body} }

// Size is the length of the body in bytes.
func (d *Document) Size() int { return len(d.body) }

// Value returns the body as encoding/json decodes it, but integers as int64 where they fit; nil if it isn't JSON. Of
// members that come twice the last one counts. The error is ErrDocument.
func (d *Document) Value() (any, error) {
	if !d.read {
		d.read = true
		d.value, d.err = readDocument(d.body)
	}
	return d.value, d.err
}

func readDocument(body []byte) (any, error) {
	if len(body) > MaxDocument || deeperThan(body, MaxDocumentDepth) {
		return nil, ErrDocument
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, nil //nolint:nilerr // what isn't JSON has no value
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, nil // nor has what goes on after a value
	}
	return withNumbers(v), nil
}

// deeperThan counts brackets outside of strings. For what isn't JSON the answer means nothing, and does no harm.
func deeperThan(body []byte, limit int) bool {
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '[' || c == '{':
			if depth++; depth > limit {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}

// withNumbers makes numbers of json.Number, in place. An identifier above 2^53 would lose its last digits as a float64.
func withNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			switch member.(type) {
			case json.Number, map[string]any, []any:
				v[name] = withNumbers(member)
			}
		}
	case []any:
		for i, element := range v {
			v[i] = withNumbers(element)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // beyond its range it is ±infinity, larger or smaller than any other number, as it should be
		return f
	}
	return v
}
