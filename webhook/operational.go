package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Operational is the body of an operational webhook: what Kapsel tells of its own work. Its form is the one that Standard
// Webhooks recommends (type, timestamp, data). Strings are IDs and words of Kapsel's own; nothing of what is delivered is in it.
type Operational struct {
	Type      string          `json:"type"`
	Timestamp MillisecondTime `json:"timestamp"` // when it happened
	Data      any             `json:"data"`      // DeliveryDead, CircuitOpened or DestinationDisabled
}

// The types of operational webhooks.
const (
	TypeDeliveryDead        = "delivery_dead"
	TypeCircuitOpened       = "circuit_opened"
	TypeDestinationDisabled = "destination_disabled"
)

// DeliveryDead tells that a delivery ended without having been delivered.
type DeliveryDead struct {
	TenantID      string          `json:"tenant_id"`
	EndpointID    string          `json:"endpoint_id"`
	DestinationID string          `json:"destination_id"`
	EventID       string          `json:"event_id"`
	DeliveryID    string          `json:"delivery_id"`
	AcceptedAt    MillisecondTime `json:"accepted_at"`
	Attempts      int             `json:"attempts"`
	Reason        string          `json:"reason"`
	LastStatus    int             `json:"last_status"` // 0: the last attempt got no answer
	LastError     string          `json:"last_error"`  // a class; empty: it got a whole one
}

// CircuitOpened tells that nothing is sent to a destination for a while, because its receiver keeps failing.
type CircuitOpened struct {
	TenantID      string           `json:"tenant_id"`
	EndpointID    string           `json:"endpoint_id"`
	DestinationID string           `json:"destination_id"`
	FailingSince  *MillisecondTime `json:"failing_since,omitempty"`
	LastStatus    int              `json:"last_status"`
	LastError     string           `json:"last_error"`
}

// DestinationDisabled tells that nothing is sent to a destination until somebody enables it.
type DestinationDisabled struct {
	TenantID      string           `json:"tenant_id"`
	EndpointID    string           `json:"endpoint_id"`
	DestinationID string           `json:"destination_id"`
	Reason        string           `json:"reason"`
	FailingSince  *MillisecondTime `json:"failing_since,omitempty"`
	LastStatus    int              `json:"last_status"`
	LastError     string           `json:"last_error"`
}

// MillisecondTime is written as `2026-11-23T12:00:00.123Z`, truncated, as in the log.
type MillisecondTime time.Time

// MarshalJSON writes the time.
func (t MillisecondTime) MarshalJSON() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format(`"2006-01-02T15:04:05.000Z"`)), nil
}

// Encode writes the body.
func (o Operational) Encode() ([]byte, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode operational webhook: %w", err)
	}
	return body, nil
}

// OperationalHeaders are the headers that an operational webhook is stored with. One that tells of a dead delivery comes from
// that delivery, and says through how many it has come: so an endpoint of Kapsel may take it in, and what comes of it there may
// fail and be told of; but what tells of that is taken in nowhere (MaxHops). Otherwise a destination that is dead and an
// operational endpoint that delivers to the endpoint of that destination would make webhooks without end.
func OperationalHeaders(deadDelivery string, original http.Header) http.Header {
	h := http.Header{"Content-Type": {"application/json"}}
	if deadDelivery != "" {
		h.Set(HeaderDeliveryID, deadDelivery)
		h.Set(HeaderHops, strconv.Itoa(max(Hops(original)+1, MaxHops-1)))
	}
	return h
}
