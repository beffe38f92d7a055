package worker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/worker"
	"go.uber.org/zap"
)

// scriptedWorker is one of the SDK's, which starts or doesn't, and gives up when it is told to.
type scriptedWorker struct {
	worker.Worker
	refuses bool
	stopped bool
	giveUp  func(error)
}

func (s *scriptedWorker) Start() error {
	if s.refuses {
		return errors.New("Temporal is away")
	}
	return nil
}

func (s *scriptedWorker) Stop() { s.stopped = true }

// A worker that can't start, and one that gave up, is followed by another until one works; Stop ends the last.
func TestSDKWorkersAreReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var made []*scriptedWorker
		s := &sdkWorker{name: "delivery", log: zap.NewNop(), make: func(onFatal func(error)) worker.Worker {
			made = append(made, &scriptedWorker{refuses: len(made) < 3 || len(made) == 4, giveUp: onFatal})
			return made[len(made)-1]
		}}
		require.NoError(t, s.start(t.Context()))
		require.Len(t, made, 4)
		made[3].giveUp(errors.New("namespace not found"))
		made[3].giveUp(errors.New("said twice"))
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		synctest.Wait()
		require.Len(t, made, 6)
		require.True(t, made[3].stopped)
		require.False(t, made[5].stopped)
		s.Stop()
		require.True(t, made[5].stopped)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		never := &sdkWorker{name: "delivery", log: zap.NewNop(), make: func(func(error)) worker.Worker { return &scriptedWorker{refuses: true} }}
		require.ErrorContains(t, never.start(ctx), "Temporal is away")
	})
}
