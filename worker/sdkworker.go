package worker

import (
	"context"
	"fmt"
	"time"

	"go.temporal.io/sdk/worker"
	"go.uber.org/zap"
)

// sdkWorker keeps a worker of Temporal's SDK at work. By itself one that can't start, because Temporal went away a moment ago, never
// will; and one that Temporal refuses for long enough (a namespace that is gone and comes back with a restore) stops for good.
type sdkWorker struct {
	name string
	// make returns a fresh worker that calls onFatal when it gives up.
	make func(onFatal func(error)) worker.Worker
	log  *zap.Logger

	stop context.CancelFunc
	done chan struct{}
}

// start returns when the worker runs, or with an error if ctx ends before.
func (s *sdkWorker) start(ctx context.Context) error {
	running, fatal, err := s.begin(ctx)
	if err != nil {
		return err
	}
	// Its end is Stop's to say: what is under way when the process is to stop still needs it.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop, s.done = stop, make(chan struct{})
	go func() {
		defer close(s.done)
		for {
			select {
			case <-background.Done():
				running.Stop()
				return
			case err := <-fatal:
				s.log.Error("Temporal refuses this worker; it begins anew", zap.String("worker", s.name), zap.Error(err))
				running.Stop()
			}
			if running, fatal, err = s.begin(background); err != nil {
				return
			}
		}
	}()
	return nil
}

// begin makes workers until one starts.
func (s *sdkWorker) begin(ctx context.Context) (worker.Worker, <-chan error, error) {
	var failing outage
	for {
		fatal := make(chan error, 1)
		fresh := s.make(func(err error) {
			select {
			case fatal <- err:
			default:
			}
		})
		err := fresh.Start()
		failing.note(s.log, "start "+s.name+" worker", err)
		if err == nil {
			return fresh, fatal, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("start %s worker: %w", s.name, err)
		case <-time.After(jitter(longestPause)):
		}
	}
}

// Stop returns when nothing of it runs any more.
func (s *sdkWorker) Stop() {
	s.stop()
	<-s.done
}
