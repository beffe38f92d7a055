package delivery_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/delivery"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status int
		class  delivery.ErrorClass
		want   delivery.Verdict
	}{
		{200, "", "works"}, {204, "interrupted", "works"}, {200, "body_read", "works"},
		{301, "", "works"}, {400, "", "works"}, {404, "", "works"}, {410, "", "works"}, {422, "timeout", "works"},
		{408, "", "fails"}, {425, "", "fails"}, {429, "", "fails"}, {500, "", "fails"}, {503, "interrupted", "fails"}, {599, "", "fails"},
		{0, "timeout", "fails"}, {0, "dns", "fails"}, {0, "connection_refused", "fails"}, {0, "connection_reset", "fails"},
		{0, "tls", "fails"}, {0, "protocol", "fails"}, {0, "network", "fails"}, {0, "blocked_address", "fails"},
		{0, "interrupted", ""}, {0, "request", ""}, {0, "", ""},
	} {
		require.Equal(t, tc.want, delivery.Judge(tc.status, tc.class), "%d %q", tc.status, tc.class)
	}
}

func TestCircuitSettings(t *testing.T) {
	t.Parallel()
	want := delivery.CircuitSettings{FailuresInRow: 5, FailuresOfLast10: 5, OpenMS: 30_000, Successes: 3, RampPerSecond: 1}
	require.Equal(t, want, delivery.DefaultCircuit())
	for _, stored := range []string{`{}`, `null`, `{"off":false}`, `{"failures_in_row":5,"failures_of_last_10":5,"open_ms":30000,"successes":3,"ramp_per_second":1}`} {
		var s delivery.CircuitSettings
		require.NoError(t, json.Unmarshal([]byte(stored), &s), stored)
		require.Equal(t, want, s.Resolved(), stored)
	}
	for stored, message := range map[string]string{
		`{"failures_in_row":11}`:            "failures_in_row must be 1 to 10, not 11",
		`{"failures_in_row":-1}`:            "failures_in_row must be 1 to 10, not -1",
		`{"failures_of_last_10":11}`:        "failures_of_last_10 must be 1 to 10, not 11",
		`{"open_ms":999}`:                   "open_ms must be 1000 to 3600000, not 999",
		`{"open_ms":3600001}`:               "open_ms must be 1000 to 3600000, not 3600001",
		`{"successes":101}`:                 "successes must be 1 to 100, not 101",
		`{"ramp_per_second":1001}`:          "ramp_per_second must be 1 to 1000, not 1001",
		`{"off":true,"failures_in_row":11}`: "off must be the only setting",
		`{"speed":3}`:                       "unknown field",
		`{"off":"yes"}`:                     "read circuit",
		`7`:                                 "read circuit",
	} {
		var s delivery.CircuitSettings
		require.ErrorContains(t, json.Unmarshal([]byte(stored), &s), message, stored)
		require.Zero(t, s, stored)
	}
}

// outcomes are verdicts as they are recorded together: + works, - fails, anything else tells nothing.
func outcomes(verdicts string) (o delivery.Outcomes) {
	for _, v := range verdicts {
		o = o.Add(map[rune]delivery.Verdict{'+': delivery.ReceiverWorks, '-': delivery.ReceiverFails}[v])
	}
	return o
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	for verdicts, want := range map[string]delivery.Outcomes{
		"": {}, "?": {}, "+": {Count: 1}, "-": {Count: 1, Failures: 1, AllFailed: true}, "+-": {Count: 2, Failures: 1},
		"-+": {Count: 2, Failures: 2}, "-?-": {Count: 2, Failures: 3, AllFailed: true},
		"-++++++++++":  {Count: 11},
		"------------": {Count: 12, Failures: 1023, AllFailed: true},
	} {
		require.Equal(t, want, outcomes(verdicts), verdicts)
	}
}

// Records of one outcome each, from a circuit that is at rest.
func TestCircuitOpens(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		settings delivery.CircuitSettings
		verdicts string // the circuit opens with the last of them, and not before
	}{
		"five in a row":                 {verdicts: "+-----"},
		"half of the last ten":          {verdicts: "-+-+-+-+-"},
		"at once":                       {delivery.CircuitSettings{FailuresInRow: 1}, "+++-"},
		"three in a row":                {delivery.CircuitSettings{FailuresInRow: 3, FailuresOfLast10: 10}, "--+--+---"},
		"two of the last ten":           {delivery.CircuitSettings{FailuresInRow: 10, FailuresOfLast10: 2}, "-++++++++-"},
		"not of the last eleven":        {delivery.CircuitSettings{FailuresInRow: 10, FailuresOfLast10: 2}, "-+++++++++-+-"},
		"ten of the last ten":           {delivery.CircuitSettings{FailuresInRow: 10, FailuresOfLast10: 10}, "---------+----------"},
		"what tells nothing counts not": {verdicts: "-?-?-?-?-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := delivery.Circuit{State: delivery.CircuitClosed}
			for i, v := range tc.verdicts {
				require.Equal(t, delivery.CircuitClosed, c.State, "before outcome %d", i)
				c = c.Record(tc.settings, outcomes(string(v)), "", "", now)
			}
			require.Equal(t, delivery.CircuitOpen, c.State)
			require.Equal(t, now, c.OpenedAt)
			require.Equal(t, now.Add(30*time.Second), c.ProbeAt)
			_, won := c.Probe("a", time.Minute, now.Add(30*time.Second-1))
			require.False(t, won)
			off := delivery.Circuit{State: delivery.CircuitClosed}.Record(delivery.CircuitSettings{Off: true}, outcomes(tc.verdicts), "", "", now)
			require.Equal(t, delivery.CircuitClosed, off.State)
		})
	}
}

// The way through the machine: open, probes one at a time, closed by the third success, at rest.
func TestCircuitClosesByProbes(t *testing.T) {
	t.Parallel()
	s := delivery.CircuitSettings{}
	c := delivery.Circuit{State: delivery.CircuitClosed}.Record(s, outcomes("-----"), "", "", now)
	require.Equal(t, delivery.CircuitOpen, c.State)
	require.Equal(t, c.State, c.Record(s, outcomes("+++++"), "", "", now).State, "requests that were in flight move nothing")

	at := now.Add(30 * time.Second)
	c, won := c.Probe("a", time.Minute, at)
	require.True(t, won)
	require.Equal(t, delivery.CircuitHalfOpen, c.State)
	_, won = c.Probe("b", time.Minute, at.Add(time.Minute-1))
	require.False(t, won, "one at a time")
	require.Equal(t, "b", must(c.Probe("b", time.Minute, at.Add(time.Minute))).Token, "unless the first is lost")

	for _, stray := range []string{"", "b"} {
		after := c.Record(s, outcomes("-"), stray, delivery.ReceiverFails, at)
		require.Equal(t, delivery.CircuitHalfOpen, after.State, "only the probe counts")
		require.Equal(t, "a", after.Token)
	}
	reopened := c.Record(s, outcomes("-"), "a", delivery.ReceiverFails, at)
	require.Equal(t, delivery.CircuitOpen, reopened.State)
	require.Equal(t, at.Add(30*time.Second), reopened.ProbeAt)
	require.Equal(t, now, reopened.FailingSince)
	unknown := c.Record(s, outcomes("?"), "a", delivery.NoVerdict, at)
	require.Equal(t, delivery.CircuitHalfOpen, unknown.State)
	require.Equal(t, at, unknown.ProbeAt, "another may try at once")

	for i, token := range []string{"a", "c", "d"} {
		require.Equal(t, i, c.Successes)
		require.Equal(t, delivery.CircuitHalfOpen, c.State)
		c = c.Record(s, outcomes("+"), token, delivery.ReceiverWorks, at)
		if i < 2 {
			c, won = c.Probe([]string{"c", "d"}[i], time.Minute, at)
			require.True(t, won)
		}
	}
	require.Equal(t, delivery.Circuit{State: delivery.CircuitClosed, ClosedAt: at}, c)
}

func must(c delivery.Circuit, won bool) delivery.Circuit {
	if !won {
		panic("the probe was not won")
	}
	return c
}

func TestRamp(t *testing.T) {
	t.Parallel()
	s := delivery.CircuitSettings{}
	for closedFor, want := range map[time.Duration]int{
		-time.Second: 1, 0: 1, time.Second - 1: 1, time.Second: 3, 2 * time.Second: 7, 3500 * time.Millisecond: 15, 10*time.Second - 1: 1023,
	} {
		got, ramping := s.Ramp(closedFor)
		require.True(t, ramping)
		require.Equal(t, want, got, closedFor)
	}
	_, ramping := s.Ramp(10 * time.Second)
	require.False(t, ramping)
	s.RampPerSecond = 50
	got, _ := s.Ramp(time.Second)
	require.Equal(t, 150, got)
}

// drawCircuitSettings draws any settings.
func drawCircuitSettings(t *rapid.T) delivery.CircuitSettings {
	return delivery.CircuitSettings{
		FailuresInRow:    rapid.IntRange(0, 10).Draw(t, "in a row"),
		FailuresOfLast10: rapid.IntRange(0, 10).Draw(t, "of the last 10"),
		OpenMS:           int64(rapid.IntRange(1000, 5000).Draw(t, "open ms")),
		Successes:        rapid.IntRange(0, 4).Draw(t, "successes"),
	}
}

// Whatever is recorded, by whomever, in whatever groups, and whoever tries to win a probe when: the circuit is never in a
// state that can't be, only a probe moves a half-open one, no two probes are under way, and nobody wins one too early.
func TestCircuitPropertyNeverImpossible(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawCircuitSettings(t)
		require.NoError(t, s.Validate())
		c, at := delivery.Circuit{State: delivery.CircuitClosed}, now
		var won []string // tokens, in order
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			before := c
			if rapid.Bool().Draw(t, "probe") {
				token := string(rune('a' + step))
				var ok bool
				c, ok = c.Probe(token, 2*time.Second, at)
				require.Equal(t, before.State != delivery.CircuitClosed && !before.ProbeAt.After(at), ok)
				if ok {
					won = append(won, token)
				} else {
					require.Equal(t, before, c)
				}
				requirePossible(t, c)
				continue
			}
			o := outcomes(rapid.StringOfN(rapid.SampledFrom([]rune("+-?")), 0, 12, -1).Draw(t, "outcomes"))
			token := rapid.SampledFrom(append(won, "")).Draw(t, "token")
			verdict := rapid.SampledFrom([]delivery.Verdict{delivery.ReceiverWorks, delivery.ReceiverFails, delivery.NoVerdict}).Draw(t, "verdict")
			if token != "" {
				o = o.Add(verdict)
			}
			c = c.Record(s, o, token, verdict, at)
			requirePossible(t, c)
			requireMove(t, before, c, token, verdict)
		}
	})
}

// requirePossible wants what must hold in each state. The constraints of the table circuits say the same.
func requirePossible(t *rapid.T, c delivery.Circuit) {
	require.Contains(t, []delivery.CircuitState{delivery.CircuitClosed, delivery.CircuitOpen, delivery.CircuitHalfOpen}, c.State)
	require.Less(t, c.Ring, uint16(1024))
	closed := c.State == delivery.CircuitClosed
	require.Equal(t, closed, c.OpenedAt.IsZero())
	require.Equal(t, closed, c.ProbeAt.IsZero())
	require.True(t, c.Token == "" || c.State == delivery.CircuitHalfOpen)
	require.True(t, c.Successes == 0 || c.State == delivery.CircuitHalfOpen)
	require.True(t, c.ClosedAt.IsZero() || closed)
	require.True(t, c.Ring != 0 || c.FailingSince.IsZero())
}

func requireMove(t *rapid.T, before, after delivery.Circuit, token string, verdict delivery.Verdict) {
	probed := before.Token != "" && before.Token == token
	switch before.State {
	case delivery.CircuitClosed:
		require.NotEqual(t, delivery.CircuitHalfOpen, after.State)
	case delivery.CircuitOpen:
		require.Equal(t, delivery.CircuitOpen, after.State)
		require.Equal(t, before.ProbeAt, after.ProbeAt, "nothing that was in flight makes the wait longer or shorter")
	case delivery.CircuitHalfOpen:
		if !probed {
			require.Equal(t, []any{before.State, before.Token, before.Successes, before.ProbeAt},
				[]any{after.State, after.Token, after.Successes, after.ProbeAt})
			return
		}
		require.Empty(t, after.Token)
		require.Equal(t, verdict == delivery.ReceiverFails, after.State == delivery.CircuitOpen)
		if after.State == delivery.CircuitClosed {
			require.Zero(t, after.Ring, "it starts anew")
		}
	}
}
