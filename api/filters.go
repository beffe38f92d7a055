package api

import (
	"encoding/json"
	"fmt"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/webhook"
)

// parseFilter compiles a filter to see whether it can be used, and returns it as it is stored; nil for none.
func parseFilter(base string, body *openapi.Filter) (json.RawMessage, error) {
	if body == nil {
		return nil, nil
	}
	filter := delivery.Filter{EventTypes: value(body.EventTypes), Expression: value(body.Expression)}
	if _, err := filter.Compile(); err != nil {
		return nil, invalidBecause(base, err)
	}
	stored, err := json.Marshal(filter)
	if err != nil {
		return nil, fmt.Errorf("write filter: %w", err)
	}
	return stored, nil
}

// parseNewFilter returns nil for what stays as it is, and an empty object for no filter.
func parseNewFilter(base string, body *openapi.Filter) (json.RawMessage, error) {
	if body != nil && *body == (openapi.Filter{}) {
		return json.RawMessage("{}"), nil
	}
	return parseFilter(base, body)
}

// filterAnswer is the filter as it was given; nil for none.
func filterAnswer(stored json.RawMessage) (*openapi.Filter, error) {
	if stored == nil {
		return nil, nil
	}
	var answer openapi.Filter
	if err := json.Unmarshal(stored, &answer); err != nil {
		return nil, fmt.Errorf("read filter: %w", err)
	}
	return &answer, nil
}

// parseEventType returns an event type policy as it is stored.
func parseEventType(base string, body *openapi.EventType) (json.RawMessage, error) {
	policy := webhook.EventTypePolicy{Source: webhook.EventTypeByNone}
	if body != nil {
		if !body.Source.Valid() {
			return nil, invalidField(join(base, "source"), `must be "header", "jsonpath" or "none"`)
		}
		policy = webhook.EventTypePolicy{
			Source: webhook.EventTypeSource(body.Source), Header: value(body.Header), Path: value(body.Path),
		}
	}
	if err := policy.Validate(); err != nil {
		return nil, invalidBecause(base, err)
	}
	stored, err := json.Marshal(policy)
	if err != nil {
		return nil, fmt.Errorf("write event type policy: %w", err)
	}
	return stored, nil
}

func eventTypeAnswer(stored json.RawMessage) (openapi.EventType, error) {
	var policy webhook.EventTypePolicy
	if err := json.Unmarshal(stored, &policy); err != nil {
		return openapi.EventType{}, fmt.Errorf("read event type policy: %w", err)
	}
	answer := openapi.EventType{Source: openapi.EventTypeSource(policy.Source)}
	if answer.Source == "" {
		answer.Source = openapi.EventTypeSourceNone
	}
	if policy.Header != "" {
		answer.Header = &policy.Header
	}
	if policy.Path != "" {
		answer.Path = &policy.Path
	}
	return answer, nil
}
