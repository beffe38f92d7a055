package delivery

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of a filter.
const (
	MaxEventType  = 200  // bytes of an event's type, and of a pattern
	MaxEventTypes = 100  // patterns of a filter
	MaxExpression = 2000 // bytes
)

// Filter says which events a destination wants. It is stored as JSON with the destination; one that has none wants every
// event. What is given must all hold.
type Filter struct {
	// EventTypes are patterns, one of which must match the event's type: the type itself, or its beginning with a * after
	// it ("pull_request.*"). "*" also matches an event that has no type.
	EventTypes []string `json:"event_types,omitempty"`
	// Expression is in CEL (https://cel.dev), over the environment that docs/guides/filters.md describes. It must be true.
	Expression string `json:"expression,omitempty"`
}

// Message is what a filter may look at.
type Message struct {
	EventType   string // "" if it has none
	ContentType string
	Headers     map[string]string // by lower-case name; several values of one name are joined with ", "
	// Body returns the body as encoding/json would decode it (integers may be int64), nil if it isn't JSON, or an error if
	// it can't be looked at. It is called only if an expression asks for the body.
	Body func() (any, error)
}

// FilterVerdict is what a filter says of an event. A filter that fails can't say that the destination doesn't want the event,
// so the event matches: rather a webhook too many than one lost.
type FilterVerdict struct {
	Matches bool
	Error   FilterError // why the expression has no result; then Matches is true
}

// FilterError is a class of failure, never free text: it is stored, counted and shown.
type FilterError string

// The classes.
const (
	FilterOK        FilterError = ""
	FilterKey       FilterError = "no_such_key"     // the body or the headers have no such member, index or name
	FilterType      FilterError = "type_mismatch"   // an operator or function got what it isn't made for
	FilterNotBool   FilterError = "not_a_boolean"   // the expression's result is neither true nor false
	FilterCost      FilterError = "cost_exceeded"   // it took more steps than it may
	FilterTime      FilterError = "time_exceeded"   // the filters of the event together took longer than they may
	FilterBody      FilterError = "body_unreadable" // the body is larger or nested deeper than what is read
	FilterUnusable  FilterError = "unusable"        // the stored filter is not one that this version knows
	FilterOtherwise FilterError = "failed"          // anything else
)

// UnmarshalJSON reads a filter. Unknown members are errors, so that nobody believes that one works.
func (f *Filter) UnmarshalJSON(data []byte) error {
	type plain Filter // without this method
	var p plain
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return fmt.Errorf("read filter: %w", err)
	}
	*f = Filter(p)
	return nil
}

// CompiledFilter is a filter that is ready to be asked, by any number of goroutines. The nil one wants every event.
type CompiledFilter struct {
	eventTypes []string
	expression *expression
	unusable   bool
}

// Unusable stands for a stored filter that can't be compiled: every event matches, with FilterUnusable.
func Unusable() *CompiledFilter { return &CompiledFilter{unusable: true} }

// Compile checks a filter and makes it ready. The error names the first field that is wrong and says what is allowed.
func (f Filter) Compile() (*CompiledFilter, error) {
	if len(f.EventTypes) == 0 && f.Expression == "" {
		return nil, fmt.Errorf("filter: event_types or expression must be given; a destination without a filter wants every event")
	}
	if len(f.EventTypes) > MaxEventTypes {
		return nil, fmt.Errorf("filter: event_types must be at most %d, not %d", MaxEventTypes, len(f.EventTypes))
	}
	for i, pattern := range f.EventTypes {
		if prefix := strings.TrimSuffix(pattern, "*"); strings.Contains(prefix, "*") || (pattern != "*" && !ValidEventType(prefix)) {
			return nil, fmt.Errorf("filter: event_types[%d] must be 1 to %d bytes of printable text, with * only at its end", i, MaxEventType)
		}
	}
	compiled := &CompiledFilter{eventTypes: f.EventTypes}
	if f.Expression != "" {
		var err error
		if compiled.expression, err = compileExpression(f.Expression); err != nil {
			return nil, err
		}
	}
	return compiled, nil
}

// ValidEventType reports whether s can be the type of an event: 1 to 200 bytes of printable text.
func ValidEventType(s string) bool {
	return s != "" && len(s) <= MaxEventType && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Evaluate says whether an event matches. ctx bounds the time; what a filter may cost in steps is bounded in any case.
func (f *CompiledFilter) Evaluate(ctx context.Context, m Message) FilterVerdict {
	switch {
	case f == nil:
		return FilterVerdict{Matches: true}
	case f.unusable:
		return FilterVerdict{Matches: true, Error: FilterUnusable}
	case !matchesAny(f.eventTypes, m.EventType):
		return FilterVerdict{}
	case f.expression == nil:
		return FilterVerdict{Matches: true}
	}
	return f.expression.evaluate(ctx, m)
}

// matchesAny is true without patterns.
func matchesAny(patterns []string, eventType string) bool {
	for _, pattern := range patterns {
		prefix, wild := strings.CutSuffix(pattern, "*")
		if eventType == pattern || wild && strings.HasPrefix(eventType, prefix) {
			return true
		}
	}
	return len(patterns) == 0
}
