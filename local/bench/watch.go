package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// treeSize is the size of the newest signed tree head, as an auditor reads it.
func (r *run) treeSize(ctx context.Context) (int64, error) {
	answer, err := r.api.GetTreeHeadWithResponse(ctx, nil)
	if err != nil {
		return 0, err
	}
	if answer.StatusCode() == http.StatusNotFound { // nothing is signed yet
		return 0, nil
	}
	if answer.JSON200 == nil {
		return 0, fmt.Errorf("read tree head: %s", answer.Body)
	}
	return answer.JSON200.TreeSize, nil
}

// sizeWatch follows the size of the newest signed tree head.
type sizeWatch struct {
	size atomic.Int64
	base int64
	stop func()
}

func (r *run) watchSize(ctx context.Context) *sizeWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &sizeWatch{base: r.baseSize}
	w.size.Store(r.baseSize)
	var ended sync.WaitGroup
	w.stop = func() { cancel(); ended.Wait() }
	ended.Go(func() {
		for {
			if size, err := r.treeSize(ctx); err == nil {
				w.size.Store(size)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	return w
}

// grown is by how many leaves the published log has grown in this run.
func (w *sizeWatch) grown() int64 { return w.size.Load() - w.base }

// reportEvery is how often a line of progress is printed.
const reportEvery = 5 * time.Second

// report prints rates until stop is called.
func report(out io.Writer, l *ledger, attested func() int64) (stop func()) {
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		started, last := time.Now(), time.Now()
		var accepted, delivered, sealed int64
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				a, d, s := l.accepted.Load(), l.delivered.Load(), attested()
				seconds := now.Sub(last).Seconds()
				_, _ = fmt.Fprintf(out, "  %4.0f s  accepted %6.0f/s  delivered %6.0f/s  attested %6.0f/s  waiting %6d  refused %d\n",
					now.Sub(started).Seconds(), float64(a-accepted)/seconds, float64(d-delivered)/seconds, float64(s-sealed)/seconds,
					l.waiting(), l.refused.Load())
				accepted, delivered, sealed, last = a, d, s, now
			}
		}
	})
	return func() { close(done); ended.Wait() }
}
