package delivery_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/delivery"
)

// exactly is the jitter that leaves a wait as it is.
const exactly = 0.5

func waits(s delivery.Schedule, jitter float64) []time.Duration {
	var all []time.Duration
	for attempt := 1; ; attempt++ {
		d, ok := s.Next(attempt, jitter)
		if !ok {
			return all
		}
		all = append(all, d)
	}
}

func TestScheduleWaits(t *testing.T) {
	t.Parallel()
	const s, ms = time.Second, time.Millisecond
	for name, tc := range map[string]struct {
		schedule delivery.Schedule
		jitter   float64
		want     []time.Duration
	}{
		"the zero schedule is the default": {delivery.Schedule{}, exactly,
			[]time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s}},
		"512 s come after a tenth attempt, and are the cap": {delivery.Schedule{MaxAttempts: 12}, exactly,
			[]time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s, 512 * s, 512 * s}},
		"least jitter": {delivery.Schedule{MaxAttempts: 3}, 0, []time.Duration{750 * ms, 1500 * ms}},
		"most jitter":  {delivery.Schedule{MaxAttempts: 3}, 1, []time.Duration{1250 * ms, 2500 * ms}},
		"no number is no jitter": {delivery.Schedule{MaxAttempts: 2}, math.NaN(),
			[]time.Duration{s}},
		"own figures": {delivery.Schedule{Type: "exponential", FirstDelayMS: 10, Factor: 10, MaxDelayMS: 500, MaxAttempts: 5}, exactly,
			[]time.Duration{10 * ms, 100 * ms, 500 * ms, 500 * ms}},
		"a first delay above the default cap": {delivery.Schedule{FirstDelayMS: 600_000, MaxAttempts: 3}, exactly,
			[]time.Duration{600 * s, 600 * s}},
		"a list has one more attempt than waits": {delivery.Schedule{Type: "list", DelaysMS: []int64{20, 10, 30}}, exactly,
			[]time.Duration{20 * ms, 10 * ms, 30 * ms}},
		"a list cut short": {delivery.Schedule{Type: "list", DelaysMS: []int64{20, 10, 30}, MaxAttempts: 2}, exactly,
			[]time.Duration{20 * ms}},
		"one attempt":       {delivery.Schedule{MaxAttempts: 1}, exactly, nil},
		"none is one, also": {delivery.Schedule{Type: "none"}, exactly, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, tc.schedule.Validate())
			require.Equal(t, tc.want, waits(tc.schedule, tc.jitter))
		})
	}
}

func TestScheduleErrorsNameTheFieldAndItsRange(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"type":"linear"}`:                                                 `type must be "exponential", "list" or "none", not "linear"`,
		`{"type":"exponential","max_attempts":101}`:                         "max_attempts must be 1 to 100, not 101",
		`{"type":"exponential","max_attempts":-1}`:                          "max_attempts must be 1 to 100, not -1",
		`{"type":"exponential","first_delay_ms":9}`:                         "first_delay_ms must be 10 to 86400000, not 9",
		`{"type":"exponential","first_delay_ms":86400001}`:                  "first_delay_ms must be 10 to 86400000, not 86400001",
		`{"type":"exponential","factor":0.99}`:                              "factor must be 1 to 10, not 0.99",
		`{"type":"exponential","factor":10.5}`:                              "factor must be 1 to 10, not 10.5",
		`{"type":"exponential","max_delay_ms":999}`:                         "max_delay_ms must be 1000 to 86400000, not 999",
		`{"type":"exponential","delays_ms":[10]}`:                           `delays_ms has no meaning for type "exponential"`,
		`{"type":"list"}`:                                                   "delays_ms must have 1 to 99 entries, not 0",
		`{"type":"list","delays_ms":[` + strings.Repeat("10,", 99) + `10]}`: "delays_ms must have 1 to 99 entries, not 100",
		`{"type":"list","delays_ms":[10,9]}`:                                "delays_ms[1] must be 10 to 86400000, not 9",
		`{"type":"list","delays_ms":[10],"max_attempts":3}`:                 "max_attempts must be 1 to 2, not 3",
		`{"type":"list","delays_ms":[10],"factor":2}`:                       `factor has no meaning for type "list"`,
		`{"type":"none","max_attempts":2}`:                                  "max_attempts must be 1 to 1, not 2",
		`{"type":"none","first_delay_ms":20}`:                               `first_delay_ms has no meaning for type "none"`,
		`{"type":"none","max_delay_ms":20}`:                                 `max_delay_ms has no meaning for type "none"`,
		`{"type":"none","delays_ms":[20]}`:                                  `delays_ms has no meaning for type "none"`,
		`{"type":"list","delay_ms":[20]}`:                                   `unknown field "delay_ms"`,
		`{"type":"list","delays_ms":[10.5]}`:                                "cannot unmarshal number 10.5",
		`[]`:                                                                "cannot unmarshal array",
	} {
		t.Run(in[:min(len(in), 60)], func(t *testing.T) {
			t.Parallel()
			before := delivery.Schedule{Type: delivery.None}
			s := before
			require.ErrorContains(t, json.Unmarshal([]byte(in), &s), want)
			require.Equal(t, before, s, "a refused schedule must not be half taken over")
		})
	}
	require.ErrorContains(t, delivery.Schedule{Factor: math.NaN()}.Validate(), "factor must be 1 to 10")
}

func TestScheduleDefaultsAreWrittenOut(t *testing.T) {
	t.Parallel()
	want := delivery.Schedule{Type: "exponential", MaxAttempts: 10, FirstDelayMS: 1000, Factor: 2, MaxDelayMS: 512_000}
	require.Equal(t, want, delivery.DefaultSchedule())
	for _, in := range []string{`{}`, `null`, `{"type":"exponential"}`, `{"factor":2}`} {
		var s delivery.Schedule
		require.NoError(t, json.Unmarshal([]byte(in), &s), in)
		require.Equal(t, want, s.Resolved(), in)
	}
}

// drawSchedule draws any valid schedule.
func drawSchedule(t *rapid.T) delivery.Schedule {
	delay := rapid.Int64Range(delivery.MinDelay.Milliseconds(), delivery.MaxDelay.Milliseconds())
	s := delivery.Schedule{}
	switch rapid.IntRange(0, 2).Draw(t, "type") {
	case 0:
		s.Type = delivery.Exponential
		s.MaxAttempts = rapid.IntRange(1, delivery.MaxAttempts).Draw(t, "attempts")
		s.FirstDelayMS = delay.Draw(t, "first")
		s.Factor = rapid.Float64Range(1, delivery.MaxFactor).Draw(t, "factor")
		s.MaxDelayMS = rapid.Int64Range(s.FirstDelayMS, delivery.MaxDelay.Milliseconds()).Draw(t, "cap")
	case 1:
		s.Type = delivery.List
		s.DelaysMS = rapid.SliceOfN(delay, 1, delivery.MaxAttempts-1).Draw(t, "delays")
		s.MaxAttempts = rapid.IntRange(1, len(s.DelaysMS)+1).Draw(t, "attempts")
	default:
		s.Type, s.MaxAttempts = delivery.None, 1
	}
	return s
}

func TestSchedulePropertyBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		require.NoError(t, s.Validate())
		jitter := rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "jitter")
		all := waits(s, jitter)
		require.Len(t, all, s.MaxAttempts-1, "one wait between any two attempts")
		for i, d := range all {
			middle, _ := s.Next(i+1, exactly)
			require.GreaterOrEqual(t, d, time.Duration(float64(middle)*(1-delivery.Jitter))-time.Millisecond)
			require.LessOrEqual(t, d, time.Duration(float64(middle)*(1+delivery.Jitter))+2*time.Millisecond)
			require.GreaterOrEqual(t, middle, delivery.MinDelay)
			require.LessOrEqual(t, middle, delivery.MaxDelay)
			if i > 0 && s.Type == delivery.Exponential {
				require.GreaterOrEqual(t, d, all[i-1], "an exponential schedule never gets shorter")
			}
		}
	})
}

func TestSchedulePropertyRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		data, err := json.Marshal(s)
		require.NoError(t, err)
		var back delivery.Schedule
		require.NoError(t, json.Unmarshal(data, &back))
		require.Equal(t, s, back)
	})
}
