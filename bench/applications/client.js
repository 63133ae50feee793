// Clients in Node.js, for clients.py: the name of one is the argument.

const https = require('https')
const { URL: url, UUID: uuid } = process.env
const body = require('fs').readFileSync(process.env.BODY)

const ofUrllib = async how => {
  const { request } = require('urllib')
  const common = { dataType: 'text', timeout: 20000, ...how }
  console.log((await request(url, common)).data)
  console.log((await request(url, { ...common, method: 'POST', content: body })).data)
}

const ofDigestFetch = async name => {
  const Client = (await import(name)).default
  const client = new Client(uuid, 'any')
  console.log(await (await client.fetch(url)).text())
  console.log(await (await client.fetch(url, { method: 'POST', body })).text())
}

const ofAxios = async () => {
  const auth = new (require('@mhoc/axios-digest-auth').default)({ username: uuid, password: 'any' })
  console.log((await auth.request({ method: 'GET', url })).data)
  console.log((await auth.request({ method: 'POST', url, data: body })).data)
}

const asked = (method, headers, data) => new Promise((good, bad) => {
  https.request(url, { method, headers, agent: false }, answer => {
    const parts = []
    answer.on('data', part => parts.push(part))
    answer.on('end', () => good({ answer, text: Buffer.concat(parts).toString() }))
  }).on('error', bad).end(data)
})

const ofIndigestion = async () => {
  const { generateDigestAuth } = require('indigestion')
  for (const [method, data] of [['GET', Buffer.of()], ['POST', body]]) {
    const { answer } = await asked(method, {})
    const authorization = generateDigestAuth({
      authenticateHeader: answer.headers['www-authenticate'],
      username: uuid, password: 'any', uri: '/', method
    })
    console.log((await asked(method, { authorization, 'Content-Length': data.length }, data)).text)
  }
}

const clients = {
  'urllib, Digest': () => ofUrllib({ digestAuth: `${uuid}:any` }),
  'urllib, Basic': () => ofUrllib({ auth: `${uuid}:any` }),
  'digest-fetch 3': () => ofDigestFetch('digest-fetch'),
  'digest-fetch 0.1': () => ofDigestFetch('digest-fetch-0.1'),
  'indigestion': ofIndigestion,
  'axios-digest-auth': ofAxios
}
module.exports = Object.keys(clients)
if (require.main === module) clients[process.argv[2]]()
