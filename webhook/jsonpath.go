package webhook

import (
	"fmt"

	"github.com/ohler55/ojg/jp"
)

// maxJSONPath bounds a path, and with it what one look-up costs.
const maxJSONPath = 256 // bytes

// JSONPath names one place in a JSON document: a singular query of RFC 9535, such as $.data.object['id'] or $.items[0].
// The zero JSONPath names none.
type JSONPath struct{ expr jp.Expr }

// ParseJSONPath compiles a path. Wildcards, descents, slices, unions and filters are refused: they name many places, and
// what they cost depends on the document. The error says what is allowed, beginning with field.
func ParseJSONPath(field, path string) (JSONPath, error) {
	if path == "" || len(path) > maxJSONPath || path[0] != '$' {
		return JSONPath{}, fmt.Errorf("%s must be a JSONPath of at most %d bytes that begins with $, such as $.type", field, maxJSONPath)
	}
	expr, err := jp.ParseString(path)
	if err != nil {
		return JSONPath{}, fmt.Errorf("%s must be a JSONPath such as $.data.items[0]['type']; this one can't be read", field)
	}
	for i, fragment := range expr {
		switch fragment.(type) {
		case jp.Root:
			if i == 0 {
				continue
			}
		case jp.Child, jp.Nth:
			continue
		}
		return JSONPath{}, fmt.Errorf("%s must name one place by members and indexes, such as $.data.items[0].type: "+
			"no wildcards, descents, slices, unions or filters", field)
	}
	if len(expr) < 2 {
		return JSONPath{}, fmt.Errorf("%s must name a member of the document, such as $.type", field)
	}
	return JSONPath{expr}, nil
}

// Find returns what stands at the path in a document as Document.Value returns it, and whether there is anything.
func (p JSONPath) Find(document any) (any, bool) {
	if p.expr == nil {
		return nil, false
	}
	return p.expr.FirstFound(document)
}
