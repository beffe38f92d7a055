package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/tracing"
)

// tracer makes what this process tells its traces to; nil if there is no collector.
func (c *Config) tracer(ctx context.Context, service string, log *zap.Logger) (*tracing.Tracer, error) {
	if !c.traces() {
		return nil, nil //nolint:nilnil // nobody is told
	}
	ratio, err := c.traceRatio()
	if err != nil {
		return nil, err
	}
	return tracing.New(ctx, tracing.Config{
		Endpoint: c.TraceEndpoint, TracesEndpoint: c.TraceTracesEndpoint, Protocol: c.TraceProtocol, Ratio: ratio, Service: service, Log: log,
	})
}

// traces reports whether there is a collector, and it is to be told of traces.
func (c *Config) traces() bool {
	return (c.TraceEndpoint != "" || c.TraceTracesEndpoint != "") && !strings.EqualFold(c.TraceDisabled, "true") && c.TraceSampler != "always_off" && c.TraceSampler != "parentbased_always_off"
}

// traceRatio is how much is sampled. What begins with parentbased_ is the same without it: each trace of Kapsel begins in Kapsel.
func (c *Config) traceRatio() (float64, error) {
	switch strings.TrimPrefix(c.TraceSampler, "parentbased_") {
	case "", "always_on":
		return 1, nil
	case "always_off":
		return 0, nil
	case "traceidratio":
		if c.TraceSamplerArg == "" {
			return 1, nil
		}
		ratio, err := strconv.ParseFloat(c.TraceSamplerArg, 64)
		if err != nil || !(ratio >= 0 && ratio <= 1) {
			return 0, errors.New("OTEL_TRACES_SAMPLER_ARG is not a number from 0 to 1")
		}
		return ratio, nil
	}
	return 0, fmt.Errorf("OTEL_TRACES_SAMPLER is %q; allowed are always_on, always_off and traceidratio, also with parentbased_ before it", c.TraceSampler)
}

// validateTracing says which variable can't be used, and never a value that may hold a credential.
func (c *Config) validateTracing() error {
	for name, value := range map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.TraceEndpoint, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.TraceTracesEndpoint} {
		if value == "" {
			continue
		}
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return fmt.Errorf("%s is not a URL like http://collector:4318, without user and query; credentials go into OTEL_EXPORTER_OTLP_HEADERS", name)
		}
	}
	switch c.TraceProtocol {
	case "", tracing.HTTP, tracing.GRPC:
	default:
		return fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q; allowed are %s and %s", c.TraceProtocol, tracing.HTTP, tracing.GRPC)
	}
	for pair := range strings.SplitSeq(c.TraceHeaders, ",") {
		name, value, found := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(value); c.TraceHeaders != "" && (!found || strings.TrimSpace(name) == "" || err != nil) {
			return errors.New("OTEL_EXPORTER_OTLP_HEADERS is not like name=value,name=value with values in URL encoding")
		}
	}
	_, err := c.traceRatio()
	return err
}
