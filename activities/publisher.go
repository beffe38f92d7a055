package activities

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/postgres"
)

// publishFor is how long publishing a head may take. Whatever takes longer counts as a failure, also if it can't be stopped.
const publishFor = 5 * time.Second

var errHangs = fmt.Errorf("publishing has not ended within %s", publishFor)

// publisher lets one head of a log be published at a time in this process, apart from sequencing: a signer that is away, hangs or
// answers wrongly neither stops nor slows that, and by the breaker it isn't asked again and again. It outlives the activity,
// so that a call which hangs is known to the next.
type publisher struct {
	metrics *sealMetrics
	log     *zap.Logger
	busy    chan struct{}

	mu      sync.Mutex
	breaker breaker
	shown   breakerState // in metrics
	started time.Time    // of what is under way
	overdue bool         // it was counted as a failure
	told    time.Time    // when that was last counted
}

func newPublisher(metrics *sealMetrics, log *zap.Logger) *publisher {
	p := &publisher{metrics: metrics, log: log, busy: make(chan struct{}, 1)}
	p.show()
	return p
}

// show has the metrics say in which state the breaker is. The caller holds mu.
func (p *publisher) show() {
	now := p.breaker.state()
	p.metrics.breaker(p.shown, now)
	p.shown = now
}

// try begins to publish, unless that is under way or the breaker forbids it. It never waits.
func (p *publisher) try(ctx context.Context, publish func(ctx context.Context, check bool) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	select {
	case p.busy <- struct{}{}:
	default:
		p.hangs(now)
		return
	}
	if !p.breaker.allows(now) {
		<-p.busy
		return
	}
	p.begin(now)
	p.show()
	check := p.breaker.failures > 0
	ctx, cancel := context.WithTimeout(ctx, publishFor)
	go func() {
		defer cancel()
		p.end(ctx, check, publish(ctx, check))
	}()
}

// do publishes whatever the breaker says, once nothing else is under way, and returns the error. If ctx ends first, what is under
// way goes on without it.
func (p *publisher) do(ctx context.Context, publish func(ctx context.Context, check bool) error) error {
	select {
	case p.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for the signer: %w", ctx.Err())
	}
	p.mu.Lock()
	p.begin(time.Now())
	check := p.breaker.failures > 0
	p.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		err := publish(ctx, check)
		p.end(ctx, check, err)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select { // it mostly ends with ctx
	case err := <-done:
		return err
	case <-time.After(sealPause):
		return fmt.Errorf("wait for the signer: %w", ctx.Err())
	}
}

func (p *publisher) begin(now time.Time) { p.started, p.overdue = now, false }

// end takes note of how a publishing ended. Nothing may have been due: only what was checked, or failed, says something about the
// signer.
func (p *publisher) end(ctx context.Context, checked bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { <-p.busy }()
	switch {
	case errors.Is(err, postgres.ErrLogClosed): // sequencing finds it too, and ends
	case err != nil && context.Cause(ctx) == context.Canceled: //nolint:errorlint // the cause itself: the worker stops
		p.breaker.probing = false // the next to look may probe
	case err != nil && !p.overdue:
		p.fail(time.Now(), err)
	case err == nil && checked:
		p.breaker.succeeded()
		p.log.Info("heads can be published again")
	}
	p.show()
}

// hangs takes note of what is under way for too long. It is one failure, but is counted again and again, as long as it hangs: what
// watches this metric couldn't tell it from one that was mended otherwise.
func (p *publisher) hangs(now time.Time) {
	switch {
	case now.Sub(p.started) <= publishFor:
	case !p.overdue:
		p.overdue, p.told = true, now
		p.fail(now, errHangs)
	case now.Sub(p.told) >= breakerLastWait:
		p.told = now
		p.metrics.failed(errHangs)
	}
}

func (p *publisher) fail(now time.Time, err error) {
	p.breaker.failed(now)
	p.metrics.failed(err)
	p.show()
	fields := []zap.Field{zap.Error(err), zap.String("breaker", string(p.breaker.state())), zap.Int("failures", p.breaker.failures)}
	if !p.breaker.probeAt.IsZero() {
		fields = append(fields, zap.Duration("next_try", p.breaker.probeAt.Sub(now).Round(time.Millisecond)))
	}
	p.log.Error("head not published; leaves are sequenced, and deliveries go on", fields...)
}

// settle waits a while for what is under way.
func (p *publisher) settle(atMost time.Duration) {
	select {
	case p.busy <- struct{}{}:
		<-p.busy
	case <-time.After(atMost):
	}
}
