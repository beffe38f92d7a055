package delivery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// ScheduleType is how the waits between attempts are found.
type ScheduleType string

// The types of schedule.
const (
	Exponential ScheduleType = "exponential" // each wait is the last one times a factor
	List        ScheduleType = "list"        // the waits are listed
	None        ScheduleType = "none"        // one attempt, no retries
)

// The bounds of a schedule and its defaults.
const (
	MinDelay    = 10 * time.Millisecond
	MaxDelay    = 24 * time.Hour
	MaxAttempts = 100
	MaxFactor   = 10.0
	// Jitter is how far a wait is moved at random, as a fraction of itself: ±25 %.
	Jitter = 0.25

	defaultFirstDelayMS = 1_000
	defaultFactor       = 2.0
	defaultMaxDelayMS   = 512_000
	defaultMaxAttempts  = 10
)

// Schedule says when a delivery is tried again, and how often. It is stored as JSON with its destination; the zero
// Schedule, `{}` and `null` are the default: exponential from 1 s to 512 s, doubling, 10 attempts.
//
// Attempts are HTTP requests, counted from 1 and including the first. After attempt n fails, and n is less than the
// maximum, the n-th delay is waited; when the last attempt fails, the delivery is dead. So 10 attempts have 9 waits
// between them: by default 1, 2, 4, … 256 s, about 8½ minutes. The 512 s would come after a tenth attempt, with
// max_attempts 11.
type Schedule struct {
	Type ScheduleType `json:"type"`
	// MaxAttempts is 1 to 100; 0 is 10 for exponential, and one more than there are delays for a list.
	MaxAttempts int `json:"max_attempts,omitempty"`
	// FirstDelayMS (exponential) is the wait after the first attempt: 10 to 86,400,000 ms; 0 is 1,000.
	FirstDelayMS int64 `json:"first_delay_ms,omitempty"`
	// Factor (exponential) is 1 to 10; 0 is 2.
	Factor float64 `json:"factor,omitempty"`
	// MaxDelayMS (exponential) caps the waits, before jitter: FirstDelayMS to 86,400,000 ms; 0 is 512,000 or
	// FirstDelayMS, whichever is more.
	MaxDelayMS int64 `json:"max_delay_ms,omitempty"`
	// DelaysMS (list) are 1 to 99 waits of 10 to 86,400,000 ms each.
	DelaysMS []int64 `json:"delays_ms,omitempty"`
}

// DefaultSchedule is the default with every figure written out.
func DefaultSchedule() Schedule { return Schedule{}.Resolved() }

// Resolved returns s with its defaults written out.
func (s Schedule) Resolved() Schedule {
	if s.Type == "" {
		s.Type = Exponential
	}
	switch s.Type {
	case Exponential:
		s.MaxAttempts = orDefault(s.MaxAttempts, defaultMaxAttempts)
		s.FirstDelayMS = orDefault(s.FirstDelayMS, defaultFirstDelayMS)
		s.Factor = orDefault(s.Factor, defaultFactor)
		s.MaxDelayMS = orDefault(s.MaxDelayMS, max(defaultMaxDelayMS, s.FirstDelayMS))
	case List:
		s.MaxAttempts = orDefault(s.MaxAttempts, len(s.DelaysMS)+1)
	case None:
		s.MaxAttempts = orDefault(s.MaxAttempts, 1)
	}
	return s
}

func orDefault[T int | int64 | float64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// UnmarshalJSON reads a schedule, writes its defaults out and validates it, so that what comes from outside is either
// usable or an error. Unknown members are errors.
func (s *Schedule) UnmarshalJSON(data []byte) error {
	type plain Schedule // without this method
	var p plain
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return fmt.Errorf("read schedule: %w", err)
	}
	resolved := Schedule(p).Resolved()
	if err := resolved.Validate(); err != nil {
		return err
	}
	*s = resolved
	return nil
}

// Validate names the first field that is out of its range, and the range.
func (s Schedule) Validate() error {
	s = s.Resolved()
	switch s.Type {
	case Exponential:
		return s.validateExponential()
	case List:
		return s.validateList()
	case None:
		if err := s.onlyFields(); err != nil {
			return err
		}
		return between("max_attempts", s.MaxAttempts, 1, 1)
	default:
		return fmt.Errorf("schedule: type must be %q, %q or %q, not %q", Exponential, List, None, s.Type)
	}
}

func (s Schedule) validateExponential() error {
	if len(s.DelaysMS) > 0 {
		return fmt.Errorf("schedule: delays_ms has no meaning for type %q", s.Type)
	}
	if err := between("max_attempts", s.MaxAttempts, 1, MaxAttempts); err != nil {
		return err
	}
	if err := between("first_delay_ms", s.FirstDelayMS, MinDelay.Milliseconds(), MaxDelay.Milliseconds()); err != nil {
		return err
	}
	if err := between("factor", s.Factor, 1, MaxFactor); err != nil {
		return err
	}
	return between("max_delay_ms", s.MaxDelayMS, s.FirstDelayMS, MaxDelay.Milliseconds())
}

func (s Schedule) validateList() error {
	if err := s.onlyFields(); err != nil {
		return err
	}
	if n := len(s.DelaysMS); n < 1 || n > MaxAttempts-1 {
		return fmt.Errorf("schedule: delays_ms must have 1 to %d entries, not %d", MaxAttempts-1, n)
	}
	for i, d := range s.DelaysMS {
		if err := between(fmt.Sprintf("delays_ms[%d]", i), d, MinDelay.Milliseconds(), MaxDelay.Milliseconds()); err != nil {
			return err
		}
	}
	return between("max_attempts", s.MaxAttempts, 1, len(s.DelaysMS)+1)
}

// onlyFields refuses what belongs to other types, so that nobody believes a factor works where it doesn't.
func (s Schedule) onlyFields() error {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"first_delay_ms", s.FirstDelayMS != 0},
		{"factor", s.Factor != 0},
		{"max_delay_ms", s.MaxDelayMS != 0},
		{"delays_ms", s.Type == None && len(s.DelaysMS) > 0},
	} {
		if f.set {
			return fmt.Errorf("schedule: %s has no meaning for type %q", f.name, s.Type)
		}
	}
	return nil
}

func between[T int | int64 | float64](field string, v, low, high T) error {
	if v >= low && v <= high { // false for NaN
		return nil
	}
	return fmt.Errorf("schedule: %s must be %v to %v, not %v", field, low, high, v)
}

// Next says how long to wait after attempt (counted from 1) has failed; it reports false if that was the last one.
// The wait is the schedule's, moved by up to ±25 %: jitter 0 gives three quarters of it, ½ exactly it, and just under 1
// five quarters. Jitter is drawn by the caller, in [0, 1). The result is in whole milliseconds. s must be valid.
func (s Schedule) Next(attempt int, jitter float64) (time.Duration, bool) {
	s = s.Resolved()
	attempt = max(attempt, 1)
	if attempt >= s.MaxAttempts || (s.Type == List && attempt > len(s.DelaysMS)) {
		return 0, false
	}
	ms := float64(s.MaxDelayMS)
	if s.Type == List {
		ms = float64(s.DelaysMS[attempt-1])
	} else if d := s.exponential(attempt); d < ms {
		ms = d
	}
	if !(jitter >= 0 && jitter <= 1) { // NaN too
		jitter = 0.5
	}
	return time.Duration(ms*(1-Jitter+2*Jitter*jitter)) * time.Millisecond, true
}

// exponential returns first × factor^(attempt−1). It multiplies step by step: math.Pow may differ in the last bit
// between architectures, and a workflow may be replayed on another one.
func (s Schedule) exponential(attempt int) float64 {
	d := float64(s.FirstDelayMS)
	for i := 1; i < attempt && d < float64(s.MaxDelayMS); i++ {
		d *= s.Factor
	}
	return d
}
