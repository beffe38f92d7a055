// Package delivery holds the rules of delivering a webhook: how an answer is judged, when the next attempt is due, when
// a delivery is over. Every rule is a pure function: time, randomness and everything that was read come from the
// caller, so the same input always gives the same decision, in a workflow as in a test.
//
// The words here (State, Kind, Outcome, ErrorClass, Reason) are written into the log and the database. They may be
// added to, and never changed.
package delivery

// State is where a delivery stands.
type State string

// The states. A delivery starts pending and ends in exactly one of the others.
const (
	Pending   State = "pending"
	Delivered State = "delivered"
	Dead      State = "dead"
	Canceled  State = "canceled"
	Skipped   State = "skipped"
)

// Terminal reports whether a delivery in this state is over: nothing will be sent for it again.
func (s State) Terminal() bool {
	return s == Delivered || s == Dead || s == Canceled || s == Skipped
}

// Kind is what a leaf of the log records.
type Kind string

// The kinds of leaf.
const (
	KindAttempt  Kind = "attempt"
	KindSkipped  Kind = "skipped"
	KindDead     Kind = "dead"
	KindCanceled Kind = "canceled"
	KindAccepted Kind = "accepted"
)

// Outcome is how one attempt ended.
type Outcome string

// The outcomes of an attempt.
const (
	// OutcomeDelivered: the receiver took it.
	OutcomeDelivered Outcome = "delivered"
	// OutcomeRetry: it failed, and another attempt follows unless the delivery is canceled.
	OutcomeRetry Outcome = "retry"
	// OutcomeFailed: it failed, and no attempt follows. A leaf of kind dead does.
	OutcomeFailed Outcome = "failed"
)

// Reason is why a delivery ended without being delivered: the outcome of its dead, canceled or skipped leaf.
type Reason string

// The reasons.
const (
	// ReasonExhausted: the schedule allows no further attempt.
	ReasonExhausted Reason = "attempts_exhausted"
	// ReasonRejected: the answer was final.
	ReasonRejected Reason = "rejected"
	// ReasonGone: the receiver answered 410 Gone, which also disables the destination.
	ReasonGone Reason = "gone"
	// ReasonUnsendable: no request can be made of what is configured.
	ReasonUnsendable Reason = "unsendable"
	// ReasonRequested: somebody canceled it. It is the outcome of a canceled leaf.
	ReasonRequested Reason = "requested"
	// ReasonFilter: the destination's filter left the event out. The reason of a skipped delivery.
	ReasonFilter Reason = "filter"
)

// ReasonDestinationDeleted is why a delivery is canceled whose destination was deleted: the outcome of its canceled leaf.
const ReasonDestinationDeleted Reason = "destination_deleted"

// ReasonErased is why a delivery is dead whose payload was erased before it was over: the outcome of its dead leaf, which has the
// error class ErrorErased.
const ReasonErased Reason = "payload_erased"

// ErrorClass says why an attempt has no (whole) answer; empty if it has one. It is a class and never free text: it goes
// into the log, where a message could give away an internal address.
type ErrorClass string

// The error classes.
const (
	NoError                ErrorClass = ""
	ErrorTimeout           ErrorClass = "timeout"            // the destination's timeout passed, in whatever phase
	ErrorDNS               ErrorClass = "dns"                // the host has no address, or nobody could say
	ErrorConnectionRefused ErrorClass = "connection_refused" // nothing listens there
	ErrorConnectionReset   ErrorClass = "connection_reset"   // the connection was closed before there was an answer
	ErrorTLS               ErrorClass = "tls"                // handshake or certificate
	ErrorBlockedAddress    ErrorClass = "blocked_address"    // the host's address is private, and not allowed
	ErrorInterrupted       ErrorClass = "interrupted"        // the worker had to stop while it waited for the answer
	ErrorProtocol          ErrorClass = "protocol"           // what came back is not HTTP
	ErrorBodyRead          ErrorClass = "body_read"          // the answer's body broke off
	ErrorNetwork           ErrorClass = "network"            // any other failure of the network
	ErrorRequest           ErrorClass = "request"            // no request can be made of what is configured
	ErrorProxy             ErrorClass = "proxy"              // the destination's proxy can't be reached, or doesn't connect
	ErrorErased            ErrorClass = "payload_erased"     // there is nothing left to send; of a decision, never of an attempt
)
