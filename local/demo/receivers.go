package demo

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/kapsel-io/kapsel/webhook"
)

// behaviour is how a receiver answers the n-th request (from 1) of one delivery.
type behaviour func(n int) int

// receivers are three services that get webhooks: one is well, one answers 503 twice before it takes each webhook, one
// never takes any.
type receivers struct {
	healthy, flaky, dead *receiver
}

// flakyFailures is how often the flaky receiver fails before it takes a webhook.
const flakyFailures = 2

func startReceivers(secret []byte) (*receivers, error) {
	var all receivers
	for _, r := range []struct {
		receiver **receiver
		answer   behaviour
	}{
		{&all.healthy, func(int) int { return http.StatusOK }},
		{&all.flaky, func(n int) int {
			if n <= flakyFailures {
				return http.StatusServiceUnavailable
			}
			return http.StatusOK
		}},
		{&all.dead, func(int) int { return http.StatusInternalServerError }},
	} {
		started, err := startReceiver(secret, r.answer)
		if err != nil {
			return nil, err
		}
		*r.receiver = started
	}
	return &all, nil
}

// stopReceivers ends the receivers, if they were started.
func (r *run) stopReceivers() {
	if r.receivers == nil {
		return
	}
	for _, one := range []*receiver{r.receivers.healthy, r.receivers.flaky, r.receivers.dead} {
		_ = one.server.Close()
	}
}

// receiver checks what it gets as a careful service would: GitHub's signature still fits the body, byte for byte.
type receiver struct {
	url    string
	server *http.Server
	secret []byte
	answer behaviour

	mu       sync.Mutex
	requests map[string]int             // by webhook-id
	bodies   map[[sha256.Size]byte]bool // of what it took
	wrong    []string
}

func startReceiver(secret []byte, answer behaviour) (*receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start receiver: %w", err)
	}
	r := &receiver{
		url: "http://" + listener.Addr().String() + "/webhook", secret: secret, answer: answer,
		requests: map[string]int{}, bodies: map[[sha256.Size]byte]bool{},
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	id := req.Header.Get("webhook-id")
	r.requests[id]++
	if err != nil || req.Header.Get("X-Hub-Signature-256") != webhook.SignGitHub(r.secret, body) {
		r.wrong = append(r.wrong, id)
	}
	status := r.answer(r.requests[id])
	if status == http.StatusOK {
		r.bodies[sha256.Sum256(body)] = true
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, http.StatusText(status))
}

// counts returns how many deliveries and requests the receiver has seen.
func (r *receiver) counts() (deliveries, requests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.requests {
		requests += n
	}
	return len(r.requests), requests
}

// took says whether the receiver has taken exactly these bytes.
func (r *receiver) took(body []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bodies[sha256.Sum256(body)]
}

// misfits returns the webhook-ids of requests whose signature didn't fit their body.
func (r *receiver) misfits() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrong
}
