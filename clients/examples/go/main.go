// Places an order and follows it until it is settled.
//
// sh tools/generate_go.sh && cd clients/examples/go && go run . -target 127.0.0.1:50051
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"orderflow.example/client/ordersv1"
)

// A repeat is safe because each order carries a request_id.
// What it repeats must carry a request_id: without one, a channel that retries may place or pay back twice.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "orderflow.orders.v1.OrderService"}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.2s",
      "backoffMultiplier": 3,
      "maxBackoff": "5s",
      "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
    }
  }]
}`

func main() {
	log.SetFlags(0)
	target := flag.String("target", "127.0.0.1:50051", "the server")
	requestID := flag.String("request-id", uuid.NewString(), "same request id, same order")
	flag.Parse()
	// Plaintext is for loopback. Elsewhere: credentials.NewTLS.
	connection, err := grpc.NewClient(*target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	orders := ordersv1.NewOrderServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	placed, err := place(ctx, orders, *requestID)
	if err != nil {
		log.Fatal(explain(err))
	}
	fmt.Println("placed", placed.GetOrder().GetOrderId())
	if err := watch(ctx, orders, placed.GetOrder().GetOrderId(), placed.GetConsistencyToken()); err != nil {
		log.Fatal(explain(err))
	}
}

func place(ctx context.Context, orders ordersv1.OrderServiceClient, requestID string) (*ordersv1.CreateOrderResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return orders.CreateOrder(ctx, &ordersv1.CreateOrderRequest{
		RequestId:     requestID,
		UserId:        "u-1",
		Email:         "a@example.com",
		PaymentMethod: "pm_card_visa",
		Items: []*ordersv1.LineItem{{
			Sku:       "SKU-1",
			Quantity:  2,
			UnitPrice: &ordersv1.Money{CurrencyCode: "EUR", AmountMinor: 1999},
		}},
	})
}

// watch prints each state of the order once, past the one that the token stands for. It begins with the token of the
// answer: an order that was just placed may not be readable yet. After a break it goes on with the last token.
func watch(ctx context.Context, orders ordersv1.OrderServiceClient, orderID, token string) error {
	for {
		err := follow(ctx, orders, orderID, &token)
		if status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func follow(ctx context.Context, orders ordersv1.OrderServiceClient, orderID string, token *string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := orders.WatchOrder(ctx, &ordersv1.WatchOrderRequest{OrderId: orderID, ResumeToken: *token})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		*token = response.GetResumeToken()
		order := response.GetOrder()
		fmt.Println(order.GetRevision(), order.GetStatus(), order.GetFailureReason())
		if isSettled(order) {
			return nil // the server's OK, which may be lost, would say no more
		}
	}
}

func isSettled(order *ordersv1.Order) bool {
	return order.GetStatus() != ordersv1.OrderStatus_ORDER_STATUS_CREATED &&
		order.GetStatus() != ordersv1.OrderStatus_ORDER_STATUS_PROCESSING
}

// explain names the server's reason and each broken rule.
func explain(err error) string {
	text := err.Error()
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			text += fmt.Sprintf("\n%s %v", detail.GetReason(), detail.GetMetadata())
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				text += fmt.Sprintf("\n%s: %s", violation.GetField(), violation.GetDescription())
			}
		}
	}
	return text
}
