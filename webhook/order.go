package webhook

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/ohler55/ojg/oj"
)

// OrderSource is where the key comes from by which deliveries are kept in order.
type OrderSource string

// The sources of an order key.
const (
	OrderByHeader   OrderSource = "header"   // a named header
	OrderByJSONPath OrderSource = "jsonpath" // a member of the JSON body
	OrderByEndpoint OrderSource = "endpoint" // none: all webhooks of the endpoint are in one line
)

// OnDead is what becomes of the deliveries behind one that is dead.
type OnDead string

// What becomes of them.
const (
	OnDeadSkip  OnDead = "skip"  // they go on without it
	OnDeadBlock OnDead = "block" // they wait until somebody releases them
)

// OrderPolicy says by which key an endpoint keeps the order of its deliveries to each destination. It is stored as JSON with
// the endpoint.
type OrderPolicy struct {
	Source OrderSource `json:"source"`
	// Header is the name of the header for source header, in any case; empty for the others.
	Header string `json:"header,omitempty"`
	// Path is the JSONPath (RFC 9535: names and indexes only) for source jsonpath; empty for the others.
	Path   string `json:"path,omitempty"`
	OnDead OnDead `json:"on_dead"`

	path JSONPath
}

// UnmarshalJSON reads and validates a policy. Unknown members are errors.
func (p *OrderPolicy) UnmarshalJSON(data []byte) error {
	type plain OrderPolicy // without this method
	var read plain
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&read); err != nil {
		return fmt.Errorf("read order policy: %w", err)
	}
	*p = OrderPolicy(read)
	return p.Validate()
}

// Validate names the first field that is wrong.
func (p *OrderPolicy) Validate() error {
	switch p.Source {
	case OrderByHeader:
		if err := validSource("ordering: header", p.Header); err != nil {
			return err
		}
	case OrderByJSONPath:
		var err error
		if p.path, err = ParseJSONPath("ordering: path", p.Path); err != nil {
			return err
		}
	case OrderByEndpoint:
	default:
		return fmt.Errorf("ordering: source must be %q, %q or %q, not %.80q", OrderByHeader, OrderByJSONPath, OrderByEndpoint, p.Source)
	}
	if p.Header != "" && p.Source != OrderByHeader {
		return fmt.Errorf("ordering: header has no meaning for source %q", p.Source)
	}
	if p.Path != "" && p.Source != OrderByJSONPath {
		return fmt.Errorf("ordering: path has no meaning for source %q", p.Source)
	}
	if p.OnDead != OnDeadSkip && p.OnDead != OnDeadBlock {
		return fmt.Errorf("ordering: on_dead must be %q or %q, not %.80q", OnDeadSkip, OnDeadBlock, p.OnDead)
	}
	return nil
}

// Key returns the hash of a webhook's order key. ok is false if it has none: such a webhook waits for nobody.
func (p *OrderPolicy) Key(headers http.Header, body []byte) (key [sha256.Size]byte, ok bool) {
	switch p.Source {
	case OrderByHeader:
		values := headers.Values(p.Header)
		if strings.Join(values, "") == "" {
			return key, false
		}
		return hashOf("order-key", "header", strings.ToLower(p.Header), values...), true
	case OrderByJSONPath:
		value, found := textAt(p.path, body)
		if !found {
			return key, false
		}
		return hashOf("order-key", "jsonpath", p.Path, value), true
	case OrderByEndpoint:
		return hashOf("order-key", "endpoint", ""), true
	}
	return key, false
}

// textAt returns the string, number or boolean at a place of a body, as text; found is false if there is none, or body isn't
// JSON. A Document won't do: it isn't read beyond a size and a depth, and a webhook that only is large keeps its order.
func textAt(path JSONPath, body []byte) (text string, found bool) {
	document, err := oj.Parse(body)
	if err != nil {
		return "", false
	}
	value, _ := path.Find(document)
	switch v := value.(type) {
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
