package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// healthTimeout is how long a process may take to say how it is. Docker and Kubernetes ask every few seconds.
const healthTimeout = 2 * time.Second

// healthCommand is for images without curl, such as Kapsel's own.
func healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "health URL",
		Short: "Ask a process how it is; the exit status is 0 if it is well",
		Long: `Ask a process how it is, and print what it says. The exit status is 0 if it answers 200 within 2 s.

An api answers under /health/live, /health/ready and /health/startup at LISTEN_ADDR, a worker at
METRICS_ADDR. It needs no variable.`,
		Example: "  kapsel health http://127.0.0.1:8080/health/ready",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			asking := http.Client{Timeout: healthTimeout, Transport: &http.Transport{Proxy: nil}}
			request, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, args[0], nil)
			if err != nil || request.URL.Scheme != "http" && request.URL.Scheme != "https" || request.URL.Host == "" {
				return errors.New("the argument is a URL such as http://127.0.0.1:8080/health/ready")
			}
			response, err := asking.Do(request)
			if err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
			defer func() { _ = response.Body.Close() }()
			if _, err := io.Copy(cmd.OutOrStdout(), io.LimitReader(response.Body, 1<<16)); err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("it answers %s", response.Status)
			}
			return nil
		},
	}
}
