package delivery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// CircuitState is whether a destination gets webhooks.
type CircuitState string

// The states of a circuit.
const (
	CircuitClosed   CircuitState = "closed"    // webhooks flow
	CircuitOpen     CircuitState = "open"      // the receiver keeps failing: nothing is sent for a while
	CircuitHalfOpen CircuitState = "half_open" // one webhook at a time finds out whether it works again
)

// RingSize is how many of a destination's last outcomes a circuit remembers.
const RingSize = 10

// The bounds of a circuit's figures and their defaults.
const (
	MinCircuitOpen      = time.Second
	MaxCircuitOpen      = time.Hour
	MaxCircuitSuccesses = 100
	MaxRampPerSecond    = 1000

	defaultFailuresInRow  = 5
	defaultFailuresOfLast = 5
	defaultCircuitOpenMS  = 30_000
	defaultSuccesses      = 3
	defaultRampPerSecond  = 1
)

// CircuitSettings say when a destination's circuit opens and closes. They are stored as JSON with the destination; the
// zero CircuitSettings, `{}` and `null` are the default.
type CircuitSettings struct {
	// Off: the circuit never opens.
	Off bool `json:"off,omitempty"`
	// FailuresInRow opens the circuit: 1 to 10; 0 is 5.
	FailuresInRow int `json:"failures_in_row,omitempty"`
	// FailuresOfLast10 opens it too, however they are spread: 1 to 10; 0 is 5.
	FailuresOfLast10 int `json:"failures_of_last_10,omitempty"`
	// OpenMS is how long nothing is sent, before one webhook tries: 1,000 to 3,600,000 ms; 0 is 30,000.
	OpenMS int64 `json:"open_ms,omitempty"`
	// Successes, one after the other, close the circuit: 1 to 100; 0 is 3.
	Successes int `json:"successes,omitempty"`
	// RampPerSecond is how many webhooks a worker sends in the first second after that; it doubles each second. 1 to
	// 1,000; 0 is 1.
	RampPerSecond int `json:"ramp_per_second,omitempty"`
}

// DefaultCircuit is the default with every figure written out.
func DefaultCircuit() CircuitSettings { return CircuitSettings{}.Resolved() }

// Resolved returns s with its defaults written out.
func (s CircuitSettings) Resolved() CircuitSettings {
	if s.Off {
		return CircuitSettings{Off: true}
	}
	s.FailuresInRow = orDefault(s.FailuresInRow, defaultFailuresInRow)
	s.FailuresOfLast10 = orDefault(s.FailuresOfLast10, defaultFailuresOfLast)
	s.OpenMS = orDefault(s.OpenMS, defaultCircuitOpenMS)
	s.Successes = orDefault(s.Successes, defaultSuccesses)
	s.RampPerSecond = orDefault(s.RampPerSecond, defaultRampPerSecond)
	return s
}

// UnmarshalJSON reads settings, writes their defaults out and validates them. Unknown members are errors.
func (s *CircuitSettings) UnmarshalJSON(data []byte) error {
	type plain CircuitSettings // without this method
	var p plain
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return fmt.Errorf("read circuit: %w", err)
	}
	if err := CircuitSettings(p).Validate(); err != nil {
		return err
	}
	*s = CircuitSettings(p).Resolved()
	return nil
}

// Validate names the first field that is out of its range, and the range.
func (s CircuitSettings) Validate() error {
	if s.Off {
		if s != (CircuitSettings{Off: true}) {
			return errors.New("circuit: off must be the only setting")
		}
		return nil
	}
	s = s.Resolved()
	for _, f := range []struct {
		name         string
		v, low, high int64
	}{
		{"failures_in_row", int64(s.FailuresInRow), 1, RingSize},
		{"failures_of_last_10", int64(s.FailuresOfLast10), 1, RingSize},
		{"open_ms", s.OpenMS, MinCircuitOpen.Milliseconds(), MaxCircuitOpen.Milliseconds()},
		{"successes", int64(s.Successes), 1, MaxCircuitSuccesses},
		{"ramp_per_second", int64(s.RampPerSecond), 1, MaxRampPerSecond},
	} {
		if f.v < f.low || f.v > f.high {
			return fmt.Errorf("circuit: %s must be %d to %d, not %d", f.name, f.low, f.high, f.v)
		}
	}
	return nil
}

// Verdict is what an attempt says about its receiver.
type Verdict string

// The verdicts.
const (
	ReceiverWorks Verdict = "works"
	ReceiverFails Verdict = "fails"
	NoVerdict     Verdict = ""
)

// Judge says what an attempt tells about the receiver, whatever it means for the delivery. What may be tried again counts
// as a failure: 408, 425, 429, every 5xx, network errors and timeouts, and also an address that is blocked, since nothing
// reaches the receiver then. Every other answer comes from a receiver that works, also one that rejects the webhook with a
// 4xx. A request that was interrupted here, or was never made, tells nothing.
func Judge(status int, class ErrorClass) Verdict {
	switch {
	case status == 0 && (class == NoError || class == ErrorInterrupted || class == ErrorRequest):
		return NoVerdict
	case Classify(status, class) == OutcomeRetry:
		return ReceiverFails
	default:
		return ReceiverWorks
	}
}

// Outcomes are the verdicts that are recorded together: Count of them, of which the newest RingSize stand in Failures as
// bits, the newest in bit 0, 1 = failure.
type Outcomes struct {
	Count    int
	Failures uint16
	// AllFailed: there was no other verdict.
	AllFailed bool
}

// Add appends a verdict.
func (o Outcomes) Add(v Verdict) Outcomes {
	if v == NoVerdict {
		return o
	}
	failed := v == ReceiverFails
	o.AllFailed = failed && (o.Count == 0 || o.AllFailed)
	o.Failures = o.Failures << 1 & ringMask
	if failed {
		o.Failures |= 1
	}
	o.Count++
	return o
}

const ringMask = 1<<RingSize - 1

// Circuit is the state machine that keeps a destination from being sent to while its receiver fails. Postgres holds and
// moves circuits, for all workers together (postgres/circuit.go); this is the rule it is tested against.
//
//	closed ──enough failures──▶ open ──after OpenMS, by the one who wins the probe──▶ half_open
//	   ▲                          ▲                                                    │  │ ▲
//	   │                          └───────────────── the probe failed ─────────────────┘  │ └─ the probe succeeded,
//	   └────────────────────────── enough probes succeeded in a row ─────────────────────┘    or told nothing: next probe
type Circuit struct {
	State CircuitState
	// Ring are the last outcomes, the newest in bit 0, 1 = failure. It is 0 if all were successes, or none was seen.
	Ring uint16
	// Successes is how many probes have succeeded in a row while half open.
	Successes int
	// OpenedAt is when the circuit last opened; zero: it is closed.
	OpenedAt time.Time
	// ProbeAt is when the next probe may be won; zero: the circuit is closed. While a probe is under way it is the moment
	// after which its winner counts as lost.
	ProbeAt time.Time
	// Token names the probe that is under way; empty: none is.
	Token string
	// ClosedAt is when the circuit last closed; zero: it never was open, or is again.
	ClosedAt time.Time
	// FailingSince is the first failure after which nothing succeeded; zero: the last outcome was a success.
	FailingSince time.Time
}

// Record is what follows from outcomes that were recorded together; whether a closed circuit opens depends on the ring
// after all of them. A half-open one is moved by its probe alone: token is that of an attempt that was recorded (empty:
// it had none) and probe its verdict, which is among the outcomes too; another token moves nothing.
func (c Circuit) Record(s CircuitSettings, o Outcomes, token string, probe Verdict, now time.Time) Circuit {
	s = s.Resolved()
	c.Ring = ring(c.Ring, o)
	c.FailingSince = failingSince(c.FailingSince, o, now)
	probed := c.State == CircuitHalfOpen && token != "" && token == c.Token
	switch {
	case s.Off:
		return Circuit{State: CircuitClosed, Ring: c.Ring, FailingSince: c.FailingSince}
	case probed && probe == ReceiverFails:
		return c.open(s, now)
	case probed && probe == ReceiverWorks && c.Successes+1 >= s.Successes:
		return Circuit{State: CircuitClosed, ClosedAt: now}
	case probed:
		c.Token, c.ProbeAt = "", now
		if probe == ReceiverWorks {
			c.Successes++
		}
	case c.State == CircuitClosed && s.trips(c.Ring):
		return c.open(s, now)
	}
	return c
}

// Probe is how whoever wants to send wins the right to: only if it is time, and only one at a time. hold is how long the
// winner has to record an outcome, before another one may try.
func (c Circuit) Probe(token string, hold time.Duration, now time.Time) (Circuit, bool) {
	if c.State == CircuitClosed || c.ProbeAt.After(now) {
		return c, false
	}
	c.State, c.Token, c.ProbeAt = CircuitHalfOpen, token, now.Add(hold)
	return c, true
}

func (c Circuit) open(s CircuitSettings, now time.Time) Circuit {
	c.State, c.OpenedAt, c.ProbeAt = CircuitOpen, now, now.Add(time.Duration(s.OpenMS)*time.Millisecond)
	c.Token, c.Successes, c.ClosedAt = "", 0, time.Time{}
	return c
}

// trips reports whether a ring holds enough failures to open a circuit.
func (s CircuitSettings) trips(ring uint16) bool {
	row := uint16(1)<<s.FailuresInRow - 1
	return ring&row == row || bits.OnesCount16(ring) >= s.FailuresOfLast10
}

// ring is what it is after outcomes: those that fall out at its old end are forgotten.
func ring(old uint16, o Outcomes) uint16 {
	if o.Count >= RingSize {
		return o.Failures & ringMask
	}
	return (old<<o.Count | o.Failures) & ringMask
}

func failingSince(since time.Time, o Outcomes, now time.Time) time.Time {
	switch {
	case o.Count == 0 || o.AllFailed && !since.IsZero():
		return since
	case o.Failures&1 == 1:
		return now
	default:
		return time.Time{}
	}
}

// rampFor is how long a circuit that has closed still holds back: then its worker may send 1,000 a second and more.
const rampFor = 10 * time.Second

// Ramp is how many webhooks one worker may have sent so long after a circuit has closed: RampPerSecond in the first second
// and twice as many in each one after it. It reports false once there is no such limit any more.
func (s CircuitSettings) Ramp(closedFor time.Duration) (int, bool) {
	if closedFor >= rampFor {
		return 0, false
	}
	seconds := int(max(closedFor, 0) / time.Second)
	return s.Resolved().RampPerSecond * (1<<(seconds+1) - 1), true
}
