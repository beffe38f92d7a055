package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/ohler55/ojg/jp"
	"github.com/ohler55/ojg/oj"
)

// maxPath bounds a JSONPath, in bytes.
const maxPath = 256

// Path names one place in a JSON document: a JSONPath (RFC 9535) of names and indexes. Filters, wildcards and descents are
// refused: they can name many places, and take long to find them.
type Path struct{ expr jp.Expr }

// ParsePath reads a JSONPath.
func ParsePath(path string) (*Path, error) {
	if len(path) == 0 || len(path) > maxPath || path[0] != '$' {
		return nil, fmt.Errorf("must be a JSONPath of 1 to %d bytes that begins with $, such as $.order.id", maxPath)
	}
	expr, err := jp.ParseString(path)
	if err != nil {
		return nil, errors.New("must be a JSONPath, such as $.order.id or $.items[0]['sku']")
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
		return nil, errors.New("must be a JSONPath of names and indexes only, such as $.order.id or $.items[0]['sku']")
	}
	if len(expr) < 2 {
		return nil, errors.New("must name a member, such as $.order.id")
	}
	return &Path{expr}, nil
}

// Lookup returns the string, number or boolean at the path, as text; found is false if there is none, or body isn't JSON.
func (p *Path) Lookup(body []byte) (value string, found bool) {
	document, err := oj.Parse(body)
	if err != nil {
		return "", false
	}
	switch v := p.expr.First(document).(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	case json.Number:
		return string(v), true
	}
	return "", false
}
