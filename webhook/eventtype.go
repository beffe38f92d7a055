package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
)

// EventTypeSource is where the type of an endpoint's events comes from.
type EventTypeSource string

// The sources of an event's type.
const (
	EventTypeByNone   EventTypeSource = "none"     // events have no type
	EventTypeByHeader EventTypeSource = "header"   // a named header, such as X-GitHub-Event
	EventTypeByPath   EventTypeSource = "jsonpath" // a place in the body, such as $.type
)

// EventTypePolicy says how an endpoint finds the type of an event. It is stored as JSON with the endpoint; the zero
// policy and `{}` are source none. Read it from JSON or call Validate before it is used: that compiles the path.
type EventTypePolicy struct {
	Source EventTypeSource `json:"source,omitempty"`
	Header string          `json:"header,omitempty"` // for source header, in any case; empty for all others
	Path   string          `json:"path,omitempty"`   // for source jsonpath: see JSONPath; empty for all others

	path JSONPath
}

// UnmarshalJSON reads and validates a policy. Unknown members are errors.
func (p *EventTypePolicy) UnmarshalJSON(data []byte) error {
	type plain EventTypePolicy // without this method
	var read plain
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&read); err != nil {
		return fmt.Errorf("read event type policy: %w", err)
	}
	policy := EventTypePolicy(read)
	if err := policy.Validate(); err != nil {
		return err
	}
	*p = policy
	return nil
}

// Validate names the first field that is wrong.
func (p *EventTypePolicy) Validate() error {
	switch p.Source {
	case "", EventTypeByNone, EventTypeByHeader, EventTypeByPath:
	default:
		return fmt.Errorf("event type: source must be %q, %q or %q, not %.80q", EventTypeByHeader, EventTypeByPath, EventTypeByNone, p.Source)
	}
	if p.Header != "" && p.Source != EventTypeByHeader {
		return fmt.Errorf("event type: header has no meaning for source %q", p.source())
	}
	if p.Path != "" && p.Source != EventTypeByPath {
		return fmt.Errorf("event type: path has no meaning for source %q", p.source())
	}
	switch p.Source {
	case EventTypeByHeader:
		return validSource("event type: header", p.Header)
	case EventTypeByPath:
		var err error
		p.path, err = ParseJSONPath("event type: path", p.Path)
		return err
	}
	return nil
}

func (p *EventTypePolicy) source() EventTypeSource {
	if p.Source == "" {
		return EventTypeByNone
	}
	return p.Source
}

// Of returns what stands where the policy says, or "" if there is nothing that is exactly one text: no header or several
// of that name, another JSON type, a body that can't be read. Whether it can be a type is for the caller to say.
func (p *EventTypePolicy) Of(headers http.Header, body *Document) string {
	switch p.Source {
	case EventTypeByHeader:
		if values := headers.Values(p.Header); len(values) == 1 {
			return values[0]
		}
	case EventTypeByPath:
		document, err := body.Value()
		if err != nil {
			return ""
		}
		found, _ := p.path.Find(document)
		text, _ := found.(string)
		return text
	}
	return ""
}
