package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/api"
)

func receiveCommand() *cobra.Command {
	var port, status int
	cmd := &cobra.Command{
		Use:   "receive",
		Short: "Show what arrives: a receiver that prints every webhook it gets",
		Long: `Listen on loopback, print every request that arrives, and answer it with one status.
It is something to deliver to while you try Kapsel; it starts nothing else.`,
		Example: `  go run ./local receive --port 9000
  go run ./local receive --port 9001 --status 503`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if status < 200 || status > 599 {
				return fmt.Errorf("--status is %d; allowed are 200 to 599", status)
			}
			listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				return fmt.Errorf("%w; choose another port with --port", err)
			}
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "receiving at http://%s/, answering %d; Ctrl-C stops\n", listener.Addr(), status)
			return serveReceiver(cmd.Context(), listener, &printer{out: cmd.OutOrStdout(), status: status})
		},
	}
	cmd.Flags().IntVar(&port, "port", 9000, "port to listen on; 0 picks a free one")
	cmd.Flags().IntVar(&status, "status", http.StatusOK, "what every request is answered with")
	return cmd
}

// serveReceiver answers requests until ctx ends.
func serveReceiver(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

// printer prints requests, one at a time.
type printer struct {
	out    io.Writer
	status int
	mu     sync.Mutex
}

// shownBody is how much of a body is printed.
const shownBody = 1000

func (p *printer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.out, "\n%s %s\n", r.Method, r.URL.EscapedPath())
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		_, _ = fmt.Fprintf(p.out, "%s: %q\n", name, strings.Join(r.Header[name], ", "))
	}
	_, _ = fmt.Fprintf(p.out, "%d bytes: %.*q\n", len(body), shownBody, body[:min(len(body), shownBody)])
	w.WriteHeader(p.status)
}
