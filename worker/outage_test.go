package worker

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// An hour without Postgres is an hour's reminders and two lines more, and some two tries a second at most.
func TestAnOutageIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zapcore.DebugLevel)
		log := zap.New(core)
		var o outage
		o.note(log, "claim", nil)
		require.Empty(t, logged.All(), "that it works is no news")
		require.True(t, o.due())

		tries := 0
		for start := time.Now(); time.Since(start) < time.Hour; time.Sleep(50 * time.Millisecond) { //nolint:forbidigo // the bubble's time
			if o.due() {
				o.note(log, "claim", errors.New("away"))
				tries++
			}
		}
		lines := logged.FilterMessage("not now: claim").Len()
		require.GreaterOrEqual(t, lines, 59)
		require.LessOrEqual(t, lines, 61)
		require.Greater(t, tries, 1700, "it is tried every 2 s at the latest")
		require.Less(t, tries, 4000, "and every second at the earliest")
		o.note(log, "claim", nil)
		require.Equal(t, 1, logged.FilterMessage("works now: claim").Len())
		require.True(t, o.due(), "at once, as before")
	})
}

// What fails and works by turns makes no line of each turn.
func TestWhatFailsNowAndThenIsToldSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zapcore.DebugLevel)
		log := zap.New(core)
		var o outage
		for range 1000 {
			o.note(log, "start workflows", errors.New("away"))
			o.note(log, "start workflows", nil)
			time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the bubble's time
		}
		require.LessOrEqual(t, logged.Len(), 6, "two lines every 5 s")
		require.GreaterOrEqual(t, logged.Len(), 4)
	})
}
