### Texts that ship with the gateway. A folder named by notifications.catalog_dir is read over them.
### One message per activity type, with exactly the attributes title and content.

# $amount (number), $currency (text), $orderId (text)
PAYMENT_SUCCESS =
    .title = Thanh toán thành công
    .content = Đơn hàng { $orderId } đã được thanh toán { $amount } { $currency }.
