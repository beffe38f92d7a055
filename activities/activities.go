// Package activities is what workflows call: the side effects. Each method says its timeout, how it is retried and why
// it may run twice. Arguments and results go into workflow history, so they carry IDs, hashes and small numbers, never
// a payload, a header, a secret or a URL with credentials.
package activities

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/webhook"
)

// Activities are the dependencies of the delivery activities.
type Activities struct {
	DB       *pgxpool.Pool // role kapsel_engine
	Client   *webhook.Client
	Loader   *Loader
	Recorder *Recorder
	// Alive reports whether this worker's lease still holds; without it nothing may be sent.
	Alive func() bool
	// Permits are taken by every send.
	Permits *Permits
	// Latencies is told how long each request took.
	Latencies *Latencies
	// Metrics count what was sent. nil: nothing is counted.
	Metrics *Metrics
	// Tracing is told of each attempt. nil: nobody is.
	Tracing *tracing.Tracer
	// Interrupt is closed when requests in flight must end, because the worker stops.
	Interrupt <-chan struct{}
}

// SendInput names one attempt. Epoch and Attempt are the fence: if the delivery is elsewhere, nothing is sent.
type SendInput struct {
	DeliveryID string
	Epoch      int
	Attempt    int
	// Counted: the start of this very send was counted by the claim, and no send can have used that up before.
	Counted bool
}

// SendResult is what became of one attempt.
type SendResult struct {
	// Moved: nothing was sent, because the delivery isn't (any longer) this carrier's.
	Moved bool
	// Canceled: nothing was sent, and the delivery is over, as is recorded: somebody canceled it, or deleted its destination. (Progress or Moved
	// says so too, to a worker of the version before.)
	Canceled bool `json:",omitempty"`
	// Dead: nothing was sent, and the delivery is over, as is recorded: its payload is erased. (Progress or Moved as above.)
	Dead bool `json:",omitempty"`
	// Held: nothing was sent, because the destination is paused or disabled, its circuit is open, or it allows no more now.
	Held bool
	// Wait (of a held one) is how long the delivery is to wait in the queue; 0: it is due at once.
	Wait time.Duration
	// Unused (of a held one): the start that the claim counted was this one's, so nothing was sent for it.
	Unused bool
	// Progress is where the delivery stands, once the attempt is recorded.
	Progress *Progress
	// Unrecorded is the outcome of a request that was sent and could not be recorded in time; RecordAttempt does it.
	Unrecorded *Outcome
}

// RecordInput is an outcome that is still to be recorded.
type RecordInput struct {
	DeliveryID string
	Epoch      int
	Attempt    int
	Outcome    Outcome
}

// Progress is where a delivery stands after an attempt was recorded.
type Progress struct {
	State string
	// Delay is the wait until the next attempt of a pending delivery.
	Delay time.Duration
	// Moved: the delivery is no longer this carrier's; it was parked, or taken over.
	Moved bool
}

// Outcome is what is known of a request that was sent, and what follows from it. Hashes are commitments in hex.
type Outcome struct {
	AttemptedAt       time.Time
	Duration          time.Duration
	EndpointURL       string // as in the leaf: without user info, query and secret paths
	URLHash           string
	HeadersHash       string
	ResponseStatus    int
	ResponseHash      string
	ResponseSize      int64
	ResponseTruncated bool
	Error             string

	Outcome            string // of the attempt
	State              string // of the delivery after it
	Reason             string // why it is dead
	Delay              time.Duration
	Park               bool
	Grace              time.Duration // how long after Delay a carrier may be silent
	DisableDestination bool
	// Probe is the token of the probe that this request was; empty: it was none.
	Probe string
}
