package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/local/demo"
)

func demoCommand() *cobra.Command {
	var config stackConfig
	var exit bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole job once: real webhooks in, delivered, proved, verified",
		Long: `Show the whole job once. It starts everything as "local" does, sends real GitHub webhooks,
signed, through a healthy, a flaky and a dead receiver and one with a filter, lets the dead one
recover and delivers again what it missed, exchanges secrets, waits for a signed tree head,
downloads the proofs of all attempts, verifies them in another process, changes single bytes
and shows the rejections.

With --exit it stops then, with status 0 only if everything it says was checked and held.`,
		Example: `  go run ./local demo
  go run ./local demo --exit`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), config, exit, cmd.OutOrStdout())
		},
	}
	addStackFlags(cmd.Flags(), &config)
	cmd.Flags().BoolVar(&exit, "exit", false, "stop when the demo is over")
	return cmd
}

func runDemo(ctx context.Context, config stackConfig, exit bool, out progress) error {
	started := time.Now()
	stack, err := startStack(ctx, config, out)
	if err != nil {
		return err
	}
	dir := filepath.Join(stack.dir, "demo")
	err = os.MkdirAll(dir, 0o700)
	if err == nil {
		err = demo.Run(ctx, demo.Config{
			APIURL: stack.apiURL, APIKey: stack.state.APIKey, PublicKey: stack.state.PublicKey, Dir: dir,
			Out: out, Terminal: isatty.IsTerminal(os.Stdout.Fd()),
		})
	}
	if err != nil {
		return stack.stop(fmt.Errorf("the demo did not hold: %w", err))
	}
	_, _ = fmt.Fprintf(out, "\nEverything held, in %.0f s. The proofs are in %s.\n", time.Since(started).Seconds(), dir)
	if exit {
		return stack.stop(nil)
	}
	stack.printURLs(out)
	_, _ = fmt.Fprintln(out, "\nCtrl-C stops everything.")
	failed := stack.wait(ctx)
	_, _ = fmt.Fprintln(out, "\nstopping …")
	return stack.stop(failed)
}
