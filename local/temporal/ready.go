package temporal

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	namespacepb "go.temporal.io/api/namespace/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// retention is how long a closed workflow stays to be looked at. What Kapsel must remember is in its own tables.
	retention     = 72 * time.Hour
	pollInterval  = 50 * time.Millisecond
	healthService = "temporal.api.workflowservice.v1.WorkflowService"
)

// awaitReady returns once the server is healthy, [Namespace] is registered and known to every service, and the Web UI
// answers. Right after its start the server refuses some calls for a moment, so each step is tried until ctx ends.
func (s *Server) awaitReady(ctx context.Context) error {
	conn, err := grpc.NewClient(s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(typedErrors))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close() }()
	frontend := workflowservice.NewWorkflowServiceClient(conn)
	for _, step := range []struct {
		name string
		try  func(context.Context) error
	}{
		{"wait for the server", func(ctx context.Context) error { return healthy(ctx, conn) }},
		{"register namespace " + Namespace, func(ctx context.Context) error { return register(ctx, frontend) }},
		{"name search attributes", func(ctx context.Context) error { return s.nameAttributes(ctx, frontend) }},
		{"wait for namespace " + Namespace, func(ctx context.Context) error { return usable(ctx, frontend) }},
		{"wait for the Web UI", s.uiAnswers},
	} {
		if err := poll(ctx, step.try); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// poll tries until it works. When ctx ends the error has the last try's, too.
func poll(ctx context.Context, try func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// typedErrors turns gRPC statuses into Temporal's error types, as the SDK does.
func typedErrors(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return serviceerror.FromStatus(serviceerror.ToStatus(invoke(ctx, method, req, reply, conn, opts...)))
}

func healthy(ctx context.Context, conn *grpc.ClientConn) error {
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: healthService})
	if err != nil {
		return err
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("server says %s", answer.Status)
	}
	return nil
}

// register makes the namespace unless it is there.
func register(ctx context.Context, frontend workflowservice.WorkflowServiceClient) error {
	_, err := frontend.DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: Namespace})
	var missing *serviceerror.NamespaceNotFound
	if !errors.As(err, &missing) {
		return err
	}
	_, err = frontend.RegisterNamespace(ctx, &workflowservice.RegisterNamespaceRequest{
		Namespace:                        Namespace,
		Description:                      "Kapsel's webhook deliveries and attestation",
		WorkflowExecutionRetentionPeriod: durationpb.New(retention),
	})
	var exists *serviceerror.NamespaceAlreadyExists
	if errors.As(err, &exists) {
		return nil
	}
	return err
}

// nameAttributes gives the search attributes the first keyword columns of the visibility store, which are those that keep
// their indexes (see usedIndexes). Registered the usual way they would get any of ten.
func (s *Server) nameAttributes(ctx context.Context, frontend workflowservice.WorkflowServiceClient) error {
	described, err := frontend.DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: Namespace})
	if err != nil {
		return err
	}
	if len(described.GetConfig().GetCustomSearchAttributeAliases()) > 0 || len(s.attributes) == 0 {
		return nil // an earlier start did it
	}
	aliases := map[string]string{}
	for i, name := range s.attributes {
		aliases[fmt.Sprintf("Keyword%02d", i+1)] = name
	}
	_, err = frontend.UpdateNamespace(ctx, &workflowservice.UpdateNamespaceRequest{
		Namespace: Namespace, Config: &namespacepb.NamespaceConfig{CustomSearchAttributeAliases: aliases},
	})
	return err
}

// usable makes a call that the frontend answers from its cache of namespaces and the visibility store.
func usable(ctx context.Context, frontend workflowservice.WorkflowServiceClient) error {
	_, err := frontend.CountWorkflowExecutions(ctx, &workflowservice.CountWorkflowExecutionsRequest{Namespace: Namespace})
	return err
}

func (s *Server) uiAnswers(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.UIURL()+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}
