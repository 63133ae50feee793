// What Node.js reads of a request goes back in a header, for tests/hidden/test_gateway_servers.py.
const answer = (request, response) => {
  const body = [];
  request.on('data', (octets) => body.push(octets)).on('end', () => {
    const fields = [];
    for (let at = 0; at < request.rawHeaders.length; at += 2)
      fields.push([request.rawHeaders[at], request.rawHeaders[at + 1]]);
    const { method, url } = request;
    const read = JSON.stringify([method, url, fields, Buffer.concat(body).toString('hex')]);
    response.setHeader('X-Read', Buffer.from(read, 'latin1').toString('hex'));
    response.setHeader('Content-Length', 0);
    response.end();
  });
};
require('http').createServer({ maxHeaderSize: 65536 }, answer).listen(0, '127.0.0.1', function () {
  console.log(this.address().port);
});
