package delivery

import "time"

// ParkAfter is the longest wait for which a workflow stays open. A delivery that has to wait longer goes back to the
// queue, where it costs one small row.
const ParkAfter = time.Hour

// Attempted is what is known after one attempt.
type Attempted struct {
	Attempt    int        // its number, from 1
	Status     int        // of the answer; 0 if no status line was received
	Class      ErrorClass // what went wrong; empty if the whole answer was received
	RetryAfter string     // the answer's Retry-After header; empty if it has none
	Now        time.Time  // from when a date in RetryAfter counts
	Jitter     float64    // in [0, 1), for Schedule.Next
	Schedule   Schedule   // the destination's
}

// Decision is what follows from one attempt.
type Decision struct {
	Outcome            Outcome       // of the attempt
	State              State         // of the delivery: Delivered, Dead, or Pending if it is to be tried again
	Delay              time.Duration // until the next attempt, if Pending
	Park               bool          // whether the wait is to be spent in the queue, if Pending
	Reason             Reason        // why it is Dead
	DisableDestination bool          // whether nothing more is to be sent to the destination
}

// Decide says what follows from one attempt. The wait is the schedule's, or what the receiver asked for if that is
// longer: an answer can slow Kapsel down, never make it hurry.
//
// The last attempt that the schedule allows is OutcomeFailed even if its answer could have been retried, so that in the
// log OutcomeRetry always means that more was to come. That also holds for an attempt which was interrupted: the
// maximum is never exceeded, because a receiver may have seen that request.
func Decide(a Attempted) Decision {
	switch Classify(a.Status, a.Class) {
	case OutcomeDelivered:
		return Decision{Outcome: OutcomeDelivered, State: Delivered}
	case OutcomeFailed:
		return Decision{
			Outcome:            OutcomeFailed,
			State:              Dead,
			Reason:             finalReason(a.Status),
			DisableDestination: DisablesDestination(a.Status),
		}
	}
	delay, more := a.Schedule.Next(a.Attempt, a.Jitter)
	if !more {
		return Decision{Outcome: OutcomeFailed, State: Dead, Reason: ReasonExhausted}
	}
	if asked, ok := RetryAfter(a.RetryAfter, a.Now); ok {
		delay = max(delay, asked)
	}
	return Decision{Outcome: OutcomeRetry, State: Pending, Delay: delay, Park: delay > ParkAfter}
}

func finalReason(status int) Reason {
	switch {
	case status == 0:
		return ReasonUnsendable
	case DisablesDestination(status):
		return ReasonGone
	default:
		return ReasonRejected
	}
}
